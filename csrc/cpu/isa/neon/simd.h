// The SIMD vocabulary on Advanced SIMD (NEON) of AArch64. What each name means is told in isa/scalar/simd.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/kernels.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

// --- float32 ------------------------------------------------------------------------------------------------------
using F = float32x4_t;
constexpr int kF = 4;

inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline F set(float v) { return vdupq_n_f32(v); }
inline F zero() { return vdupq_n_f32(0); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
// fmax and fmin give NaN where either is NaN; these words give b.
inline F vmax(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F vmin(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F vabs(F a) { return vabsq_f32(a); }
inline F copysign(F magnitude, F sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude); }
inline F round_even(F a) { return vrndnq_f32(a); }
inline F select_less(F a, F b, F yes, F no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
inline F times_power(F a, F n) {
    const int32x4_t whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1), bias = vdupq_n_s32(127);
    const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return vmulq_f32(vmulq_f32(a, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}
inline float reduce_add(F a) { return vaddvq_f32(a); }
inline float reduce_max(F a) {
    const float32x2_t x = vget_low_f32(a), y = vget_high_f32(a), m = vbsl_f32(vcgt_f32(x, y), x, y);
    return vget_lane_f32(m, 0) > vget_lane_f32(m, 1) ? vget_lane_f32(m, 0) : vget_lane_f32(m, 1);
}
inline F load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline F load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline void store_f16(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline F load_i16(const int16_t* p) { return vcvtq_f32_s32(vmovl_s16(vld1_s16(p))); }
inline void store_i16(int16_t* p, F v) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(v))); }
inline void prefetch(const void* p) { __builtin_prefetch(p); }

// --- panels of 16 rows --------------------------------------------------------------------------------------------
constexpr int kTileRows = 6;  // 24 accumulators, 4 of weights, 1 of activations: 29 of 32 registers
constexpr int kTilePanels = 1;
constexpr int kSums16 = 6;
constexpr int kDirectRows = 2;  // 8 accumulators beside the 16 registers of an unpacked group

struct F16 {
    F v[4];
};
inline F16 load16(const float* p) { return {{load(p), load(p + 4), load(p + 8), load(p + 12)}}; }
inline void store16(float* p, F16 x) {
    for (int i = 0; i < 4; i++) store(p + 4 * i, x.v[i]);
}
inline F16 zero16() { return {{zero(), zero(), zero(), zero()}}; }
inline F16 load16_f16(const uint16_t* p) { return {{load_f16(p), load_f16(p + 4), load_f16(p + 8), load_f16(p + 12)}}; }
inline F16 load16_bf16(const uint16_t* p) { return {{load_bf16(p), load_bf16(p + 4), load_bf16(p + 8), load_bf16(p + 12)}}; }
inline F16 load16_i8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
inline F16 add(F16 x, F16 y) {
    for (int i = 0; i < 4; i++) x.v[i] += y.v[i];
    return x;
}
inline F16 mul(F16 x, F16 y) {
    for (int i = 0; i < 4; i++) x.v[i] *= y.v[i];
    return x;
}
inline F16 mul(F16 x, F y) {
    for (int i = 0; i < 4; i++) x.v[i] *= y;
    return x;
}
inline F16 fma(F16 x, F16 y, F16 z) {
    for (int i = 0; i < 4; i++) z.v[i] = fma(x.v[i], y.v[i], z.v[i]);
    return z;
}
inline F16 fma(F16 x, F y, F16 z) {
    for (int i = 0; i < 4; i++) z.v[i] = fma(x.v[i], y, z.v[i]);
    return z;
}

inline F16 lookup_scales(const uint8_t* codes, const NestedMap& map) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = map.values[codes[i]];
    return load16(lanes);
}
inline float nested_unit(const NestedMap&) { return 1; }

struct I16 {
    int32x4_t v[4];
};
inline I16 set_i(int32_t v) { return {{vdupq_n_s32(v), vdupq_n_s32(v), vdupq_n_s32(v), vdupq_n_s32(v)}}; }
inline I16 zero_i() { return set_i(0); }
inline I16 add_i(I16 x, I16 y) {
    for (int i = 0; i < 4; i++) x.v[i] = vaddq_s32(x.v[i], y.v[i]);
    return x;
}
inline F16 to_float(I16 x) {
    return {{vcvtq_f32_s32(x.v[0]), vcvtq_f32_s32(x.v[1]), vcvtq_f32_s32(x.v[2]), vcvtq_f32_s32(x.v[3])}};
}

// The two columns lie apart, not interleaved: smlal multiplies 4 rows of one column by one lane of activations.
struct Pairs {
    int16x8_t first[2], second[2];
};
using Pair = int16x4_t;
inline Pair broadcast_pair(const int16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, 4);
    return vreinterpret_s16_s32(vdup_n_s32(both));
}
inline I16 dot(I16 sum, Pairs w, Pair x) {
    for (int i = 0; i < 2; i++) {
        sum.v[2 * i] = vmlal_lane_s16(sum.v[2 * i], vget_low_s16(w.first[i]), x, 0);
        sum.v[2 * i + 1] = vmlal_high_lane_s16(sum.v[2 * i + 1], w.first[i], x, 0);
        sum.v[2 * i] = vmlal_lane_s16(sum.v[2 * i], vget_low_s16(w.second[i]), x, 1);
        sum.v[2 * i + 1] = vmlal_high_lane_s16(sum.v[2 * i + 1], w.second[i], x, 1);
    }
    return sum;
}
inline Pairs load_pairs(const int16_t* p) {
    const int16x8x2_t low = vld2q_s16(p), high = vld2q_s16(p + 16);
    return {{low.val[0], high.val[0]}, {low.val[1], high.val[1]}};
}
inline void store_pairs(int16_t* p, Pairs w) {
    vst2q_s16(p, {{w.first[0], w.second[0]}});
    vst2q_s16(p + 16, {{w.first[1], w.second[1]}});
}

#ifdef __ARM_FEATURE_DOTPROD  // isa/neon_dotprod and isa/neon_i8mm
#define HALFBYTE_QUADS 1
struct Quads {
    uint8x16_t v[4];
};
using Quad = int8x8_t;
inline Quad broadcast_quad(const uint8_t* p) {
    int32_t all;
    __builtin_memcpy(&all, p, 4);
    return vreinterpret_s8_s32(vdup_n_s32(all));
}
inline I16 dot_quads(I16 sum, const Quads& w, Quad x) {
    for (int i = 0; i < 4; i++) {
#ifdef __ARM_FEATURE_MATMUL_INT8
        sum.v[i] = vusdotq_lane_s32(sum.v[i], w.v[i], x, 0);
#else
        sum.v[i] = vdotq_lane_s32(sum.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(kByteBias))), x, 0);
#endif
    }
    return sum;
}
#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr int kQuadBias = kByteBias;
#else
constexpr int kQuadBias = 0;  // sdot takes signed levels
#endif
inline Quads load_quads(const uint8_t* p) { return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}}; }
inline void store_quads(uint8_t* p, const Quads& w) {
    for (int i = 0; i < 4; i++) vst1q_u8(p + 16 * i, w.v[i]);
}
constexpr uint8_t kQuadOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
inline void store_quads_of(const int16_t* words, int64_t n, uint8_t* values) {
    for (int64_t i = 0; i < n; i += 8) {
        const uint8x8_t bytes = vreinterpret_u8_s8(vmovn_s16(vld1q_s16(words + i)));
        vst1_u8(values + i, vtbl1_u8(bytes, vld1_u8(kQuadOrder)));
    }
}
using Levels8 = uint8x16_t;
inline Levels8 load_levels8(const uint8_t* table) { return vld1q_u8(table); }
inline void unpack_codes8(const uint8_t* codes, Levels8 t, Quads* w) {
    for (int i = 0; i < 4; i++) {
        const uint8x16_t bytes = vld1q_u8(codes + 16 * i);
        w[0].v[i] = vqtbl1q_u8(t, vandq_u8(bytes, vdupq_n_u8(15)));
        w[1].v[i] = vqtbl1q_u8(t, vshrq_n_u8(bytes, 4));
    }
}
#else  // smull of bytes and sadalp cost three quarters of what smlal of int16 does: not worth a second kernel
#define HALFBYTE_QUADS 0
#endif

// Four bytes of a row lie together, as products of bytes take them; ld4 takes them apart again. A level of 16 bits is looked up
// as two bytes.
constexpr int nibble_place(int row, int k) { return 8 * row + k; }
struct Levels {
    uint8x16_t low, high;
};
inline Levels load_levels(const int16_t* table) {
    const uint8x16x2_t bytes = vld2q_u8(reinterpret_cast<const uint8_t*>(table));
    return {bytes.val[0], bytes.val[1]};
}
inline void look_up(Levels t, uint8x16_t codes, int16x8_t* column) {
    const uint8x16_t low = vqtbl1q_u8(t.low, codes), high = vqtbl1q_u8(t.high, codes);
    column[0] = vreinterpretq_s16_u8(vzip1q_u8(low, high)), column[1] = vreinterpretq_s16_u8(vzip2q_u8(low, high));
}
inline void unpack_codes(const uint8_t* codes, Levels t, Pairs* w) {
    const uint8x16x4_t bytes = vld4q_u8(codes);
    for (int j = 0; j < 4; j++) {
        look_up(t, vandq_u8(bytes.val[j], vdupq_n_u8(15)), w[j].first);
        look_up(t, vshrq_n_u8(bytes.val[j], 4), w[j].second);
    }
}
constexpr int byte_place(int row, int k) { return 64 * (k % 2) + 4 * row + k / 2; }
inline void widen(uint8x16_t bytes, int16x8_t* column) {
    const int8x16_t levels = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(kByteBias)));
    column[0] = vmovl_s8(vget_low_s8(levels)), column[1] = vmovl_high_s8(levels);
}
inline void unpack_bytes(const uint8_t* bytes, Pairs* w) {
    const uint8x16x4_t first = vld4q_u8(bytes), second = vld4q_u8(bytes + 64);
    for (int j = 0; j < 4; j++) widen(first.val[j], w[j].first), widen(second.val[j], w[j].second);
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
