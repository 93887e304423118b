// The SIMD vocabulary on AVX2, FMA and F16C. What each name means is told in isa/scalar/simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

// --- float32 ------------------------------------------------------------------------------------------------------
using F = __m256;
constexpr int kF = 8;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F set(float v) { return _mm256_set1_ps(v); }
inline F zero() { return _mm256_setzero_ps(); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F vmax(F a, F b) { return _mm256_max_ps(a, b); }
inline F vmin(F a, F b) { return _mm256_min_ps(a, b); }
inline F vabs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F copysign(F magnitude, F sign) {
    const F bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
inline F round_even(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F select_less(F a, F b, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline F times_power(F a, F n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
inline float reduce_add(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float reduce_max(F a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_i16(const int16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_i16(int16_t* p, F v) {
    const __m256i whole = _mm256_cvtps_epi32(v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// --- panels of 16 rows --------------------------------------------------------------------------------------------
constexpr int kTileRows = 6;  // 12 accumulators, 2 of weights, 1 broadcast, 1 product: the 16 registers
constexpr int kTilePanels = 1;
constexpr int kDirectRows = 2;  // activation rows that eat codes as they are unpacked
constexpr int kSums16 = 6;

struct F16 {
    __m256 a, b;
};
inline F16 load16(const float* p) { return {load(p), load(p + 8)}; }
inline void store16(float* p, F16 v) { store(p, v.a), store(p + 8, v.b); }
inline F16 zero16() { return {zero(), zero()}; }
inline F16 load16_f16(const uint16_t* p) { return {load_f16(p), load_f16(p + 8)}; }
inline F16 load16_bf16(const uint16_t* p) { return {load_bf16(p), load_bf16(p + 8)}; }
inline F16 load16_i8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline F16 add(F16 x, F16 y) { return {x.a + y.a, x.b + y.b}; }
inline F16 mul(F16 x, F16 y) { return {x.a * y.a, x.b * y.b}; }
inline F16 mul(F16 x, F y) { return {x.a * y, x.b * y}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }
inline F16 fma(F16 x, F y, F16 z) { return {fma(x.a, y, z.a), fma(x.b, y, z.b)}; }

inline F16 lookup_scales(const uint8_t* codes, const NestedMap& map) {
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = map.values[codes[i]];
    return load16(lanes);
}
inline float nested_unit(const NestedMap&) { return 1; }

struct I16 {
    __m256i a, b;
};
inline I16 zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I16 set_i(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline I16 add_i(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline F16 to_float(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

struct Pairs {
    __m256i a, b;
};
using Pair = __m256i;
// Written as assembly because g++ 12 moves every product of a tile to the front and then keeps the accumulators on the stack.
inline Pair broadcast_pair(const int16_t* p) {
    struct Both {
        int16_t v[2];
    };
    Pair x;
    asm volatile("vpbroadcastd %1, %0" : "=x"(x) : "m"(*reinterpret_cast<const Both*>(p)));
    return x;
}
#ifdef HALFBYTE_VNNI
inline __m256i multiply_add(__m256i sum, __m256i w, Pair x) {
    asm volatile(HALFBYTE_VNNI "vpdpwssd %[x], %[w], %[sum]" : [sum] "+x"(sum) : [w] "x"(w), [x] "x"(x));
    return sum;
}
#else
inline __m256i multiply_add(__m256i sum, __m256i w, Pair x) {
    __m256i product;
    asm volatile(
        "vpmaddwd %[x], %[w], %[product]\n\t"
        "vpaddd %[product], %[sum], %[sum]"
        : [sum] "+x"(sum), [product] "=&x"(product)
        : [w] "x"(w), [x] "x"(x));
    return sum;
}
#endif
inline I16 dot(I16 sum, Pairs w, Pair x) { return {multiply_add(sum.a, w.a, x), multiply_add(sum.b, w.b, x)}; }
inline Pairs load_pairs(const int16_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 16))};
}
inline void store_pairs(int16_t* p, Pairs w) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), w.a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 16), w.b);
}

#ifndef HALFBYTE_VNNI
// No products of bytes: without VNNI they cost as many instructions as those of int16.
#define HALFBYTE_QUADS 0
// Pairs of columns of 8 rows are consecutive bytes.
constexpr int byte_place(int row, int k) { return 32 * (k / 2) + 2 * row + k % 2; }
inline void unpack_bytes(const uint8_t* bytes, Pairs* w) {
    const __m128i bias = _mm_set1_epi8(-128);
    for (int j = 0; j < 4; j++) {
        const auto* p = reinterpret_cast<const __m128i*>(bytes + 32 * j);
        w[j] = {_mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128(p), bias)),
                _mm256_cvtepi8_epi16(_mm_xor_si128(_mm_loadu_si128(p + 1), bias))};
    }
}
#else
#define HALFBYTE_QUADS 1
constexpr int kQuadBias = kByteBias;
struct Quads {
    __m256i a, b;
};
using Quad = __m256i;
inline Quad broadcast_quad(const uint8_t* p) { return broadcast_pair(reinterpret_cast<const int16_t*>(p)); }
inline I16 dot_quads(I16 sum, Quads w, Quad x) {
    asm volatile(HALFBYTE_VNNI "vpdpbusd %[x], %[w], %[sum]" : [sum] "+x"(sum.a) : [w] "x"(w.a), [x] "x"(x));
    asm volatile(HALFBYTE_VNNI "vpdpbusd %[x], %[w], %[sum]" : [sum] "+x"(sum.b) : [w] "x"(w.b), [x] "x"(x));
    return sum;
}
inline Quads load_quads(const uint8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void store_quads(uint8_t* p, Quads w) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), w.a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), w.b);
}
// The low bytes of a row's two words are columns 0 and 1, the high ones 2 and 3: pairs come without a shuffle.
constexpr uint8_t kQuadOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};
inline void store_quads_of(const int16_t* words, int64_t n, uint8_t* values) {
    const __m128i low_bytes = _mm_setr_epi8(0, 4, 2, 6, 8, 12, 10, 14, -1, -1, -1, -1, -1, -1, -1, -1);  // of kQuadOrder
    for (int64_t i = 0; i < n; i += 8)
        _mm_storel_epi64(reinterpret_cast<__m128i*>(values + i),
                         _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words + i)), low_bytes));
}
constexpr int byte_place(int row, int k) { return 64 * (k / 4) + 4 * row + 2 * (k % 2) + k % 4 / 2; }
inline void unpack_bytes(const uint8_t* bytes, Pairs* w) {
    const __m256i bias = _mm256_set1_epi8(-128);
    for (int i = 0; i < 2; i++, bytes += 64) {
        const __m256i a = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)), bias);
        const __m256i b = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32)), bias);
        w[2 * i] = {_mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8)};
        w[2 * i + 1] = {_mm256_srai_epi16(a, 8), _mm256_srai_epi16(b, 8)};
    }
}
using Levels8 = __m256i;
inline Levels8 load_levels8(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}
inline void unpack_codes8(const uint8_t* codes, Levels8 t, Quads* w) {
    const __m256i mask = _mm256_set1_epi8(15);
    // From the order of nibble_place(), 8 bytes of pair 0 of four rows and 8 of pair 1, to 4 bytes a row.
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    const __m256i a = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), order);
    const __m256i b = _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32)), order);
    w[0] = {_mm256_shuffle_epi8(t, _mm256_and_si256(a, mask)), _mm256_shuffle_epi8(t, _mm256_and_si256(b, mask))};
    w[1] = {_mm256_shuffle_epi8(t, _mm256_and_si256(_mm256_srli_epi16(a, 4), mask)),
            _mm256_shuffle_epi8(t, _mm256_and_si256(_mm256_srli_epi16(b, 4), mask))};
}
#endif

// A level of 16 bits is looked up as two bytes, and the unpack instructions put them together: byte 8*(j%2) + 2*(row%4) + i of
// the 16 bytes of four rows ends up in pair j of its row.
constexpr int nibble_place(int row, int k) {
    const int j = k / 2, i = k % 2;
    const int byte = 32 * (row / 8) + 16 * (row % 8 / 4) + 8 * (j % 2) + 2 * (row % 4) + i;
    return 2 * byte + j / 2;
}
struct Levels {
    __m256i low, high;
};
inline Levels load_levels(const int16_t* table) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 8));
    const __m128i mask = _mm_set1_epi16(0xff);
    const __m128i low = _mm_packus_epi16(_mm_and_si128(first, mask), _mm_and_si128(second, mask));
    const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    return {_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)};
}
inline void unpack_codes(const uint8_t* codes, Levels t, Pairs* w) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
    const __m256i a0 = _mm256_and_si256(a, mask), b0 = _mm256_and_si256(b, mask);
    const __m256i a1 = _mm256_and_si256(_mm256_srli_epi16(a, 4), mask), b1 = _mm256_and_si256(_mm256_srli_epi16(b, 4), mask);
    const __m256i la0 = _mm256_shuffle_epi8(t.low, a0), ha0 = _mm256_shuffle_epi8(t.high, a0);
    const __m256i la1 = _mm256_shuffle_epi8(t.low, a1), ha1 = _mm256_shuffle_epi8(t.high, a1);
    const __m256i lb0 = _mm256_shuffle_epi8(t.low, b0), hb0 = _mm256_shuffle_epi8(t.high, b0);
    const __m256i lb1 = _mm256_shuffle_epi8(t.low, b1), hb1 = _mm256_shuffle_epi8(t.high, b1);
    w[0] = {_mm256_unpacklo_epi8(la0, ha0), _mm256_unpacklo_epi8(lb0, hb0)};
    w[1] = {_mm256_unpackhi_epi8(la0, ha0), _mm256_unpackhi_epi8(lb0, hb0)};
    w[2] = {_mm256_unpacklo_epi8(la1, ha1), _mm256_unpacklo_epi8(lb1, hb1)};
    w[3] = {_mm256_unpackhi_epi8(la1, ha1), _mm256_unpackhi_epi8(lb1, hb1)};
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
