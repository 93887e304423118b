// The SIMD vocabulary in plain C++ (vectors of four floats through the compiler, loops for the rest). Also the place that says
// what each name means. Everything has internal linkage: the same names exist once per instruction set.
#pragma once

#include <math.h>

#include <cstdint>

#include "cpu/kernels.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

// --- float32 ------------------------------------------------------------------------------------------------------
/// A vector of kF floats; + - * / work on it.
using F = float __attribute__((vector_size(16)));
constexpr int kF = 4;

inline F load(const float* p) {  // any alignment, here and below
    F v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
inline F set(float v) { return F{v, v, v, v}; }
inline F zero() { return F{}; }
inline F fma(F a, F b, F c) { return a * b + c; }  // one or two roundings
inline F vmax(F a, F b) { return a > b ? a : b; }  // b where either is NaN
inline F vmin(F a, F b) { return a < b ? a : b; }  // b where either is NaN
inline F vabs(F a) {
    for (int i = 0; i < kF; i++) a[i] = __builtin_fabsf(a[i]);
    return a;
}
inline F copysign(F magnitude, F sign) {
    for (int i = 0; i < kF; i++) magnitude[i] = __builtin_copysignf(magnitude[i], sign[i]);
    return magnitude;
}
inline F round_even(F a) {  // to nearest integer, ties to even
    for (int i = 0; i < kF; i++) a[i] = nearbyintf(a[i]);
    return a;
}
inline F select_less(F a, F b, F yes, F no) { return a < b ? yes : no; }  // per lane; `no` where either is NaN
inline F times_power(F a, F n) {  // a * 2^n, n integers in -200..200; right in the subnormal range too
    for (int i = 0; i < kF; i++) {
        // NaN stays in `a`; its exponent is taken as 0.
        const int whole = n[i] == n[i] ? int(n[i]) : 0, half = whole >> 1;
        const uint32_t first = uint32_t(half + 127) << 23, second = uint32_t(whole - half + 127) << 23;
        float x, y;
        __builtin_memcpy(&x, &first, 4), __builtin_memcpy(&y, &second, 4);
        a[i] = a[i] * x * y;
    }
    return a;
}
inline float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float reduce_max(F a) {
    const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
}
inline float one_f16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    uint32_t wide;
    float small = float(magnitude) * 0x1p-24f, value;  // exact for subnormals
    __builtin_memcpy(&wide, &small, 4);
    if (magnitude >= 0x7c00u)
        wide = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
    else if (magnitude >= 0x0400u)
        wide = (magnitude << 13) + 0x38000000u;
    wide |= sign;
    __builtin_memcpy(&value, &wide, 4);
    return value;
}
inline F load_f16(const uint16_t* p) { return F{one_f16(p[0]), one_f16(p[1]), one_f16(p[2]), one_f16(p[3])}; }
inline F load_bf16(const uint16_t* p) {
    F v;
    const uint32_t bits[4] = {uint32_t(p[0]) << 16, uint32_t(p[1]) << 16, uint32_t(p[2]) << 16, uint32_t(p[3]) << 16};
    __builtin_memcpy(&v, bits, sizeof v);
    return v;
}
inline uint16_t one_to_f16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {  // adding 0.5 leaves a unit in the last place of 2^-24, the spacing of subnormals
        float shifted;
        __builtin_memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        __builtin_memcpy(&bits, &shifted, 4);
        return uint16_t(sign | (bits - 0x3f000000u));
    }
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
inline void store_f16(uint16_t* p, F v) {  // to nearest even
    for (int i = 0; i < kF; i++) p[i] = one_to_f16(v[i]);
}
inline F load_i16(const int16_t* p) { return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
inline void store_i16(int16_t* p, F v) {  // v: integers in -32768..32767
    for (int i = 0; i < kF; i++) p[i] = int16_t(v[i]);
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }

// --- panels of 16 rows --------------------------------------------------------------------------------------------
constexpr int kTileRows = 2;    ///< Rows of activations whose accumulators fit in registers, in panel_linear and float_gemm.
constexpr int kTilePanels = 1;  ///< Panels that share a broadcast of activations in a tile.
constexpr int kDirectRows = 1;  ///< Up to so many rows, codes are unpacked in registers and not into a buffer.
constexpr int kSums16 = 2;      ///< F16 accumulators that fit in registers beside what is added to them, in attention.

/// 16 floats, one per row of a panel.
struct F16 {
    F v[4];
};
inline F16 load16(const float* p) { return {{load(p), load(p + 4), load(p + 8), load(p + 12)}}; }
inline void store16(float* p, F16 x) {
    for (int i = 0; i < 4; i++) store(p + 4 * i, x.v[i]);
}
inline F16 zero16() { return {}; }
inline F16 load16_f16(const uint16_t* p) { return {{load_f16(p), load_f16(p + 4), load_f16(p + 8), load_f16(p + 12)}}; }
inline F16 load16_bf16(const uint16_t* p) { return {{load_bf16(p), load_bf16(p + 4), load_bf16(p + 8), load_bf16(p + 12)}}; }
inline F16 load16_i8(const int8_t* p) {  // 16 integers in -128..127
    F16 x;
    for (int i = 0; i < 16; i++) x.v[i / 4][i % 4] = float(p[i]);
    return x;
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
    for (int i = 0; i < 4; i++) z.v[i] += x.v[i] * y.v[i];
    return z;
}
inline F16 fma(F16 x, F y, F16 z) {
    for (int i = 0; i < 4; i++) z.v[i] += x.v[i] * y;
    return z;
}

/// The second-level scales of 16 codes, in units of nested_unit().
inline F16 lookup_scales(const uint8_t* codes, const NestedMap& map) {
    F16 y;
    for (int i = 0; i < 16; i++) y.v[i / 4][i % 4] = map.values[codes[i]];
    return y;
}
inline float nested_unit(const NestedMap&) { return 1; }

/// 16 sums of int32, one per row.
struct I16 {
    int32_t v[16];
};
inline I16 zero_i() { return {}; }
inline I16 set_i(int32_t v) {
    I16 x;
    for (int i = 0; i < 16; i++) x.v[i] = v;
    return x;
}
inline I16 add_i(I16 x, I16 y) {
    for (int i = 0; i < 16; i++) x.v[i] += y.v[i];
    return x;
}
inline F16 to_float(I16 x) {
    F16 y;
    for (int i = 0; i < 16; i++) y.v[i / 4][i % 4] = float(x.v[i]);
    return y;
}
/// Two consecutive columns of 16 rows as int16: [16][2].
struct Pairs {
    int16_t v[32];
};
/// The same two columns of one row of activations, for all rows.
struct Pair {
    int32_t a, b;
};
inline Pair broadcast_pair(const int16_t* p) { return {p[0], p[1]}; }
inline I16 dot(I16 sum, const Pairs& w, Pair x) {
    for (int i = 0; i < 16; i++) sum.v[i] += w.v[2 * i] * x.a + w.v[2 * i + 1] * x.b;
    return sum;
}
inline Pairs load_pairs(const int16_t* p) {  // 64-byte aligned
    Pairs w;
    __builtin_memcpy(&w, p, sizeof w);
    return w;
}
inline void store_pairs(int16_t* p, const Pairs& w) { __builtin_memcpy(p, &w, sizeof w); }  // 64-byte aligned

/// 1 where the set has products of bytes: levels (stored with kByteBias added) times signed activations, 4 columns at a time.
#define HALFBYTE_QUADS 1
/// What dot_quads() has added to a level: kByteBias where it multiplies unsigned bytes, 0 where it multiplies signed ones.
constexpr int kQuadBias = kByteBias;
/// Four columns of 16 rows as unsigned bytes: [16][4].
struct Quads {
    uint8_t v[64];
};
/// The same four columns of one row of activations, for all rows.
struct Quad {
    int8_t v[4];
};
inline Quad broadcast_quad(const uint8_t* p) { return {{int8_t(p[0]), int8_t(p[1]), int8_t(p[2]), int8_t(p[3])}}; }
inline I16 dot_quads(I16 sum, const Quads& w, Quad x) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sum.v[i] += w.v[4 * i + j] * x.v[j];
    return sum;
}
/// Columns of a group in the order in which the quads take them: unpack_codes8() gives those of kQuadOrder[0..3] in w[0].
constexpr uint8_t kQuadOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
/// values[i] of each group of 8 = words[kQuadOrder[i]], n words in -127..127, n a multiple of 32.
inline void store_quads_of(const int16_t* words, int64_t n, uint8_t* values) {
    for (int64_t g = 0; g < n; g += 8)
        for (int i = 0; i < 8; i++) values[g + i] = uint8_t(words[g + kQuadOrder[i]]);
}
inline Quads load_quads(const uint8_t* p) {  // 64-byte aligned
    Quads w;
    __builtin_memcpy(&w, p, sizeof w);
    return w;
}
inline void store_quads(uint8_t* p, const Quads& w) { __builtin_memcpy(p, &w, sizeof w); }  // 64-byte aligned

/// Where the code of (row, column) of a group of 16 rows x 8 columns lies: nibble 2i is the low half of byte i. Each
/// instruction set has the order that it unpacks fastest.
constexpr int nibble_place(int row, int k) { return 8 * row + k; }
/// Where the byte of (row, column) of a group lies. Its first 64 bytes are quad 0, where the set has quads.
constexpr int byte_place(int row, int k) { return 64 * (k % 2) + 4 * row + k / 2; }
/// 16 levels, ready for lookup.
struct Levels {
    const int16_t* table;
};
inline Levels load_levels(const int16_t* table) { return {table}; }
/// A group of codes (64 bytes) -> the levels of columns 2j, 2j + 1 in w[j], j = 0..3.
inline void unpack_codes(const uint8_t* codes, Levels t, Pairs* w) {
    for (int row = 0; row < 16; row++)
        for (int j = 0; j < 4; j++) {
            w[j].v[2 * row] = t.table[codes[4 * row + j] & 15];
            w[j].v[2 * row + 1] = t.table[codes[4 * row + j] >> 4];
        }
}

/// A group of bytes (128, kByteBias added) -> the levels of columns 2j, 2j + 1 in w[j].
inline void unpack_bytes(const uint8_t* bytes, Pairs* w) {
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 8; k++) w[k / 2].v[2 * row + k % 2] = int16_t(bytes[byte_place(row, k)] - kByteBias);
}
/// 16 levels with kByteBias added, ready for lookup.
struct Levels8 {
    const uint8_t* table;
};
inline Levels8 load_levels8(const uint8_t* table) { return {table}; }
inline void unpack_codes8(const uint8_t* codes, Levels8 t, Quads* w) {
    for (int i = 0; i < 64; i++) {
        w[0].v[i] = t.table[codes[i] & 15];
        w[1].v[i] = t.table[codes[i] >> 4];
    }
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
