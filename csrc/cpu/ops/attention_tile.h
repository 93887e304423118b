// The two products of attention as tiles of kRows rows x kVectors vectors of 16 sums in registers.
#pragma once

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

// Elements of keys and values, 16 at a time, as float32.
struct KvF32 {
    using T = float;
    static constexpr bool kScaled = false;
    static F16 load(const T* p) { return load16(p); }
};
struct KvF16 {
    using T = uint16_t;
    static constexpr bool kScaled = false;
    static F16 load(const T* p) { return load16_f16(p); }
};
struct KvBf16 {
    using T = uint16_t;
    static constexpr bool kScaled = false;
    static F16 load(const T* p) { return load16_bf16(p); }
};
struct KvI8 {
    using T = int8_t;
    static constexpr bool kScaled = true;
    static F16 load(const T* p) { return load16_i8(p); }
};

// Tiles of few rows wait for memory when the cache is long: they ask for what comes so many steps later.
constexpr int64_t kAhead = 32;
constexpr int kFewRows = 6;

template <int kBytes>
inline void prefetch_bytes(const void* p) {
    for (int i = 0; i < kBytes; i += 64) prefetch(static_cast<const char*>(p) + i);
}

// g++ 12 keeps an array of vectors in memory unless the loops over it are unrolled early.
#define HALFBYTE_EACH_SUM \
    _Pragma("GCC unroll 12") for (int r = 0; r < kRows; r++) _Pragma("GCC unroll 4") for (int v = 0; v < kVectors; v++)

/// scores [kRows][kScoreBlock] = queries [dim][kRows] x keys [dim][kKeyBlock], for kVectors * 16 of the keys.
template <class Kv, int kRows, int kVectors>
inline void score_tile(const typename Kv::T* keys, const float* queries, int64_t dim, float* scores) {
    F16 sums[kRows][kVectors], k[kVectors];
    HALFBYTE_EACH_SUM sums[r][v] = zero16();
    for (int64_t d = 0; d < dim; d++, keys += kKeyBlock, queries += kRows) {
        if constexpr (kRows <= kFewRows) prefetch_bytes<kVectors * 16 * sizeof(*keys)>(keys + kAhead * kKeyBlock);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) k[v] = Kv::load(keys + 16 * v);
        HALFBYTE_EACH_SUM sums[r][v] = fma(k[v], set(queries[r]), sums[r][v]);
    }
    HALFBYTE_EACH_SUM store16(scores + r * kScoreBlock + 16 * v, sums[r][v]);
}

/// out [kRows][out_stride] = out * shrink [kRows] + weights [kRows][kScoreBlock] x values [count][stride], kVectors * 16 columns.
template <class Kv, int kRows, int kVectors>
inline void value_tile(const typename Kv::T* values, int64_t stride, int64_t count, const float* weights,
                       const float* shrink, float* out, int64_t out_stride) {
    F16 sums[kRows][kVectors], x[kVectors];
    HALFBYTE_EACH_SUM sums[r][v] = mul(load16(out + r * out_stride + 16 * v), set(shrink[r]));
    for (int64_t i = 0; i < count; i++, values += stride, weights++) {
        if constexpr (kRows <= kFewRows) prefetch_bytes<kVectors * 16 * sizeof(*values)>(values + kAhead * stride);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) x[v] = Kv::load(values + 16 * v);
        HALFBYTE_EACH_SUM sums[r][v] = fma(x[v], set(weights[r * kScoreBlock]), sums[r][v]);
    }
    HALFBYTE_EACH_SUM store16(out + r * out_stride + 16 * v, sums[r][v]);
}

#undef HALFBYTE_EACH_SUM

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
