// The SIMD vocabulary on AVX-512 F, BW, VL and DQ, with VNNI or without (isa/avx512bw). What each name means is told in isa/scalar/simd.h.
#pragma once

#ifndef HALFBYTE_EMULATED                     // tests/kernels/emulation brings its own definitions of the same names
#if defined(__GNUC__) && !defined(__clang__)  // g++ 12 warns about its own header: _mm512_undefined_ps() (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include <cstdint>

#include "cpu/kernels.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

// --- float32 ------------------------------------------------------------------------------------------------------
using F = __m512;
constexpr int kF = 16;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F set(float v) { return _mm512_set1_ps(v); }
inline F zero() { return _mm512_setzero_ps(); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F vmax(F a, F b) { return _mm512_max_ps(a, b); }
inline F vmin(F a, F b) { return _mm512_min_ps(a, b); }
inline F vabs(F a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
inline F copysign(F magnitude, F sign) {
    const F bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}
inline F round_even(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F select_less(F a, F b, F yes, F no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
inline F times_power(F a, F n) { return _mm512_scalef_ps(a, n); }
inline float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
inline float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
inline F load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_i16(const int16_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline void store_i16(int16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }

// --- panels of 16 rows --------------------------------------------------------------------------------------------
constexpr int kTileRows = 6;  // 12 sums of integers, 12 of floats, 2 of weights, 1 broadcast of the 32 registers
constexpr int kTilePanels = 2;
constexpr int kDirectRows = 8;
constexpr int kSums16 = 24;

using F16 = __m512;
inline F16 load16(const float* p) { return load(p); }
inline void store16(float* p, F16 v) { store(p, v); }
inline F16 zero16() { return zero(); }
inline F16 load16_f16(const uint16_t* p) { return load_f16(p); }
inline F16 load16_bf16(const uint16_t* p) { return load_bf16(p); }
inline F16 load16_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F16 add(F16 x, F16 y) { return x + y; }
inline F16 mul(F16 x, F16 y) { return x * y; }

// 8 registers of integers: bits 6 and 7 of a code say which two hold its entry.
inline F16 lookup_scales(const uint8_t* codes, const NestedMap& map) {
    const __m512i index =
        _mm512_castsi256_si512(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
    __m512i quarter[4];
    for (int i = 0; i < 4; i++)
        quarter[i] = _mm512_permutex2var_epi16(_mm512_loadu_si512(map.words + 64 * i), index,
                                               _mm512_loadu_si512(map.words + 64 * i + 32));
    const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    const __m512i low = _mm512_mask_blend_epi16(bit6, quarter[0], quarter[1]);
    const __m512i high = _mm512_mask_blend_epi16(bit6, quarter[2], quarter[3]);
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(_mm512_mask_blend_epi16(bit7, low, high))));
}
inline float nested_unit(const NestedMap& map) { return map.unit; }

using I16 = __m512i;
inline I16 zero_i() { return _mm512_setzero_si512(); }
inline I16 set_i(int32_t v) { return _mm512_set1_epi32(v); }
inline I16 add_i(I16 x, I16 y) { return _mm512_add_epi32(x, y); }
inline F16 to_float(I16 x) { return _mm512_cvtepi32_ps(x); }

// Written as assembly because g++ 12 otherwise moves the broadcasts to the front and keeps the accumulators on the stack; the
// emulation has its own words for these three.
using Pairs = __m512i;
using Pair = __m512i;
using Quads = __m512i;
using Quad = __m512i;
#if defined(HALFBYTE_EMULATED)
#define HALFBYTE_QUADS 1
inline __m512i broadcast4(const uint8_t* p) {
    int32_t all;
    __builtin_memcpy(&all, p, 4);
    return _mm512_set1_epi32(all);
}
inline I16 dot(I16 sum, Pairs w, Pair x) { return _mm512_dpwssd_epi32(sum, w, x); }
inline I16 dot_quads(I16 sum, Quads w, Quad x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
inline __m512i broadcast4(const uint8_t* p) {
    struct Four {
        uint8_t v[4];
    };
    __m512i x;
    asm volatile("vpbroadcastd %1, %0" : "=v"(x) : "m"(*reinterpret_cast<const Four*>(p)));
    return x;
}
// Rows of a tile. x86 adds a base and an index times 1, 2 or 4, so six rows need four registers; left to itself, g++ 12 keeps one
// address for each row and step on the stack.
#define HALFBYTE_STRIDED 1
struct Strided {
    const uint8_t* p;
    int64_t s1, s3, s5;
};
inline Strided strided(const uint8_t* p, int64_t stride) { return {p, stride, 3 * stride, 5 * stride}; }
/// The 4 bytes at p + kRow * stride + offset + kWithin in all lanes.
template <int kRow, int kWithin>
inline __m512i broadcast4(const Strided& at, int64_t offset) {
    static_assert(kRow < 6);
    const uint8_t* const p = at.p + offset;
    __m512i x;
    if constexpr (kRow == 0)
        asm volatile("vpbroadcastd %c2(%1), %0" : "=v"(x) : "r"(p), "i"(kWithin));
    else if constexpr (kRow == 2 || kRow == 4)
        asm volatile("vpbroadcastd %c3(%1,%2,%c4), %0" : "=v"(x) : "r"(p), "r"(at.s1), "i"(kWithin), "i"(kRow));
    else
        asm volatile("vpbroadcastd %c3(%1,%2), %0"
                     : "=v"(x)
                     : "r"(p),
                       "r"(kRow == 1   ? at.s1
                           : kRow == 3 ? at.s3
                                       : at.s5),
                       "i"(kWithin));
    return x;
}
#ifdef __AVX512VNNI__
#define HALFBYTE_QUADS 1
inline I16 dot(I16 sum, Pairs w, Pair x) {
    asm volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}
inline I16 dot_quads(I16 sum, Quads w, Quad x) {
    asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}
#else  // isa/avx512bw: no products of bytes, for the reason told in isa/avx2/simd.h
#define HALFBYTE_QUADS 0
inline I16 dot(I16 sum, Pairs w, Pair x) {
    __m512i product;
    asm volatile(
        "vpmaddwd %[x], %[w], %[product]\n\t"
        "vpaddd %[product], %[sum], %[sum]"
        : [sum] "+v"(sum), [product] "=&v"(product)
        : [w] "v"(w), [x] "v"(x));
    return sum;
}
#endif
#endif
constexpr int kQuadBias = kByteBias;
inline Pair broadcast_pair(const int16_t* p) { return broadcast4(reinterpret_cast<const uint8_t*>(p)); }
inline Quad broadcast_quad(const uint8_t* p) { return broadcast4(p); }
inline Pairs load_pairs(const int16_t* p) { return _mm512_load_si512(p); }
inline void store_pairs(int16_t* p, Pairs w) { _mm512_store_si512(p, w); }
inline Quads load_quads(const uint8_t* p) { return _mm512_load_si512(p); }
inline void store_quads(uint8_t* p, Quads w) { _mm512_store_si512(p, w); }

// In the 32-bit lane of a row there are two 16-bit words: nibble j of word i is column 2j + i. A table that repeats 16 levels
// ignores bit 4 of the index, so that vpermw needs no mask. The low nibbles of the four bytes are columns 0, 4, 1, 5, the high ones
// 2, 6, 3, 7: the order of the quads.
constexpr int nibble_place(int row, int k) { return 2 * (4 * row + 2 * (k % 2)) + k / 2; }
constexpr int byte_place(int row, int k) { return 64 * (k % 4 / 2) + 4 * row + 2 * (k % 2) + k / 4; }
constexpr uint8_t kQuadOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};
inline void store_quads_of(const int16_t* words, int64_t n, uint8_t* values) {
    alignas(16) static constexpr uint8_t kWords[16] = {0, 1, 8,  9,  2, 3, 10, 11,
                                                       4, 5, 12, 13, 6, 7, 14, 15};  // of kQuadOrder
    const __m512i order = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kWords)));
    for (int64_t i = 0; i < n; i += 32)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i),
                            _mm512_cvtepi16_epi8(_mm512_shuffle_epi8(_mm512_loadu_si512(words + i), order)));
}
using Levels = __m512i;
inline Levels load_levels(const int16_t* table) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
}
inline void unpack_codes(const uint8_t* codes, Levels t, Pairs* w) {
    const __m512i v = _mm512_loadu_si512(codes);
    w[0] = _mm512_permutexvar_epi16(v, t);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4), t);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 8), t);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(v, 12), t);
}
inline void unpack_bytes(const uint8_t* bytes, Pairs* w) {
    const __m512i bias = _mm512_set1_epi8(-128);
    for (int i = 0; i < 2; i++) {
        const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(bytes + 64 * i), bias);
        w[i] = _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8);
        w[i + 2] = _mm512_srai_epi16(v, 8);
    }
}
using Levels8 = __m512i;
inline Levels8 load_levels8(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}
inline void unpack_codes8(const uint8_t* codes, Levels8 t, Quads* w) {
    const __m512i v = _mm512_loadu_si512(codes), mask = _mm512_set1_epi8(15);
    w[0] = _mm512_shuffle_epi8(t, _mm512_and_si512(v, mask));
    w[1] = _mm512_shuffle_epi8(t, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
