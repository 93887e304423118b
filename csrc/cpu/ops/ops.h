// What the files of ops/ share: the vocabulary of this instruction set, tails, loads of every float kind, and the list of what
// each file provides to the table in kernels.cpp.
#pragma once

#include <math.h>

#include "cpu/kernels.h"
#include "simd.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// The first n < kF floats at p; the other lanes are `fill`.
inline F load_tail(const float* p, int64_t n, float fill = 0) {
    float lanes[kF];
    for (int i = 0; i < kF; i++) lanes[i] = i < n ? p[i] : fill;
    return load(lanes);
}
inline void store_tail(float* p, F v, int64_t n) {
    float lanes[kF];
    store(lanes, v);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

/// Elements of a float kind as float32.
struct AsF32 {
    using T = float;
    static F vector(const T* p) { return load(p); }
};
struct AsF16 {
    using T = uint16_t;
    static F vector(const T* p) { return load_f16(p); }
};
struct AsBf16 {
    using T = uint16_t;
    static F vector(const T* p) { return load_bf16(p); }
};
template <class Kind>
inline F vector_tail(const typename Kind::T* p, int64_t n) {
    typename Kind::T lanes[kF] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return Kind::vector(lanes);
}

/// As far as the L2 cache: what is wanted a while later.
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }
/// Of a line that will be written.
inline void prefetch_write(const void* p) { __builtin_prefetch(p, 1); }

inline float max_of(float a, float b) { return a > b ? a : b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

// quantize.cpp
void quantize_row(const float* x, int64_t cols, int64_t block, int limit, int16_t* values, float* scales, float* sums,
                  int64_t stride, double* error2, double* norm2);
void quantize_row8(const float* x, int64_t cols, int64_t block, uint8_t* values, float* scales, float* sums, int32_t* starts,
                   int64_t stride);
void quantize_residual(const float* x, int64_t cols, int64_t block, const int16_t* values, const float* scales,
                       int64_t stride, float* out);
// panel_linear.cpp
void panel_linear(const Panels& weight, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last,
                  void* scratch);
// float_linear.cpp
using FloatLinear = void(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                         int64_t cols, const LinearOutput& out);
FloatLinear float_dots_f32, float_dots_f16, float_dots_bf16, float_gemm_f32, float_gemm_f16, float_gemm_bf16;
// lora.cpp
using LoraInner = void(const void* a, const float* x, int64_t x_stride, const int32_t* rows, int64_t count, int64_t cols,
                       bool alone, float scale, float* out, int64_t out_stride);
using LoraOuter = void(const void* b, const float* inner, int64_t inner_stride, const int32_t* rows, int64_t count,
                       int64_t rank, float* y, int64_t y_stride, int64_t n);
LoraInner lora_inner_f32, lora_inner_f16, lora_inner_bf16;
LoraOuter lora_outer_f32, lora_outer_f16, lora_outer_bf16;
// attention.cpp
using Attention = void(const AttentionTask& task);
Attention attention_f32, attention_f16, attention_bf16, attention_i8;
void merge_attention(const float* parts, int64_t count, int64_t queries, int64_t group, int64_t head_dim, float* out,
                     int64_t out_stride);
// kv_store.cpp
using StoreKv = void(const float* x, int64_t x_stride, int64_t count, int64_t head_dim, int64_t first, void* to,
                     float* scales);
StoreKv store_keys_f32, store_keys_f16, store_keys_bf16, store_keys_i8;
StoreKv store_values_f32, store_values_f16, store_values_bf16, store_values_i8;
// activation.cpp
extern const Activations kActivationKernels;
// norm.cpp
void layer_norm(const float* x, int64_t cols, const float* gamma, const float* beta, float eps, float* out);
void rms_norm(const float* x, int64_t cols, const float* gamma, float eps, float* out);
double sum_of_squares(const float* x, int64_t n);
// elementwise.cpp
void add_to(float* x, const float* y, int64_t n);
void add_scaled(float* x, const float* y, float scale, int64_t n);
void maximum(float* x, const float* y, int64_t n);
void scale_by(float* x, float factor, int64_t n);
void rope_half(float* x, const float* cosines, const float* sines, int64_t half);
void rope_interleaved(float* x, const float* cosines, const float* sines, int64_t half);

}  // namespace halfbyte::cpu::HALFBYTE_ISA
