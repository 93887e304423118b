// The intrinsics that isa/avx512/simd.h uses, as loops over lanes, written from Intel's description of each. Nothing here is fast.
#pragma once

#include <math.h>

#include <cstdint>

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

using __m512 = float __attribute__((vector_size(64)));
struct __m512i {
    int16_t v[32];
};
struct __m256i {
    int16_t v[16];
};
using __mmask16 = uint16_t;
constexpr int _MM_FROUND_TO_NEAREST_INT = 0, _MM_FROUND_NO_EXC = 8, _CMP_LT_OQ = 17;

template <class To, class From>
inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
struct Ints {
    int32_t v[16];
};
template <class F>
inline __m512 each(F f) {
    __m512 r;
    for (int i = 0; i < 16; i++) r[i] = f(i);
    return r;
}
template <class F>
inline __m512i each_int(F f) {
    Ints r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return bits_as<__m512i>(r);
}
template <class F>
inline __m512i each_word(F f) {
    __m512i r;
    for (int i = 0; i < 32; i++) r.v[i] = f(i);
    return r;
}
template <class T>
inline T read(const void* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}
inline uint32_t bits(float x) { return bits_as<uint32_t>(x); }
inline float from_bits(uint32_t x) { return bits_as<float>(x); }

inline __m512 _mm512_loadu_ps(const float* p) { return read<__m512>(p); }
inline void _mm512_storeu_ps(float* p, __m512 v) { __builtin_memcpy(p, &v, sizeof v); }
inline __m512 _mm512_set1_ps(float v) {
    return each([=](int) { return v; });
}
inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return each([=](int i) { return float(double(a[i]) * double(b[i]) + double(c[i])); });
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
    return each([=](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
    return each([=](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline __m512 _mm512_andnot_ps(__m512 a, __m512 b) {
    return each([=](int i) { return from_bits(~bits(a[i]) & bits(b[i])); });
}
inline __m512 _mm512_and_ps(__m512 a, __m512 b) {
    return each([=](int i) { return from_bits(bits(a[i]) & bits(b[i])); });
}
inline __m512 _mm512_or_ps(__m512 a, __m512 b) {
    return each([=](int i) { return from_bits(bits(a[i]) | bits(b[i])); });
}
inline __m512 _mm512_roundscale_ps(__m512 a, int) {
    return each([=](int i) { return nearbyintf(a[i]); });
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int) {
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= unsigned(a[i] < b[i]) << i;
    return __mmask16(mask);
}
inline __m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
    return each([=](int i) { return (mask >> i & 1) != 0 ? b[i] : a[i]; });
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    return each([=](int i) { return b[i] != b[i] ? b[i] : ldexpf(a[i], int(b[i])); });
}
inline float _mm512_reduce_add_ps(__m512 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; i++) a[i] += a[i + width];
    return a[0];
}
inline float _mm512_reduce_max_ps(__m512 a) {
    for (int i = 1; i < 16; i++) a[0] = a[0] > a[i] ? a[0] : a[i];
    return a[0];
}

inline __m256i _mm256_loadu_si256(const __m256i* p) { return read<__m256i>(p); }
inline void _mm256_storeu_si256(__m256i* p, __m256i v) { __builtin_memcpy(static_cast<void*>(p), &v, sizeof v); }
inline __m512i _mm512_loadu_si512(const void* p) { return read<__m512i>(p); }
inline __m512i _mm512_load_si512(const void* p) {
    if (reinterpret_cast<uintptr_t>(p) % 64 != 0) __builtin_trap();  // as the instruction does
    return read<__m512i>(p);
}
inline void _mm512_store_si512(void* p, __m512i v) {
    if (reinterpret_cast<uintptr_t>(p) % 64 != 0) __builtin_trap();
    __builtin_memcpy(p, &v, sizeof v);
}
inline __m512i _mm512_setzero_si512() { return {}; }
inline __m512i _mm512_set1_epi32(int32_t x) {
    return each_int([=](int) { return x; });
}
inline __m512 _mm512_castsi512_ps(__m512i a) { return bits_as<__m512>(a); }
inline __m512i _mm512_slli_epi32(__m512i a, int count) {
    const Ints x = bits_as<Ints>(a);
    return each_int([=](int i) { return int32_t(uint32_t(x.v[i]) << count); });
}
inline __m512i _mm512_srli_epi16(__m512i a, int count) {
    return each_word([=](int i) { return int16_t(uint16_t(a.v[i]) >> count); });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return each_int([=](int i) { return int32_t(uint16_t(a.v[i])); });
}
inline __m512i _mm512_cvtepi16_epi32(__m256i a) {
    return each_int([=](int i) { return int32_t(a.v[i]); });
}
inline __m512i _mm512_cvtepi8_epi16(__m256i a) {
    return each_word([=](int i) { return int16_t(int8_t(uint16_t(a.v[i / 2]) >> (i % 2 * 8))); });
}
inline __m256i _mm512_cvtsepi32_epi16(__m512i a) {
    const Ints x = bits_as<Ints>(a);
    __m256i r;
    for (int i = 0; i < 16; i++) r.v[i] = int16_t(x.v[i] > 32767 ? 32767 : x.v[i] < -32768 ? -32768 : x.v[i]);
    return r;
}
struct __m128i {
    uint8_t v[16];
};
using __mmask32 = uint32_t;
inline __m128i _mm_loadu_si128(const __m128i* p) { return read<__m128i>(p); }
inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
    return each_int([=](int i) { return int32_t(int8_t(a.v[i])); });
}
inline __m256i _mm256_cvtepu8_epi16(__m128i a) {
    __m256i r;
    for (int i = 0; i < 16; i++) r.v[i] = a.v[i];
    return r;
}
inline __m512i _mm512_castsi256_si512(__m256i a) {  // the upper half is undefined: 0x5a5a here
    return each_word([=](int i) { return i < 16 ? a.v[i] : int16_t(0x5a5a); });
}
inline __m256i _mm512_castsi512_si256(__m512i a) {
    __m256i r;
    for (int i = 0; i < 16; i++) r.v[i] = a.v[i];
    return r;
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
    return each_word([=](int i) { return (index.v[i] & 32) != 0 ? b.v[index.v[i] & 31] : a.v[index.v[i] & 31]; });
}
inline __mmask32 _mm512_test_epi16_mask(__m512i a, __m512i b) {
    __mmask32 mask = 0;
    for (int i = 0; i < 32; i++) mask |= __mmask32((a.v[i] & b.v[i]) != 0) << i;
    return mask;
}
inline __m512i _mm512_mask_blend_epi16(__mmask32 mask, __m512i a, __m512i b) {
    return each_word([=](int i) { return (mask >> i & 1) != 0 ? b.v[i] : a.v[i]; });
}
inline __m512i _mm512_set1_epi16(int16_t x) {
    return each_word([=](int) { return x; });
}
inline __m512i _mm512_set1_epi8(char x) { return _mm512_set1_epi16(int16_t(uint8_t(x) * 0x0101)); }
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) {
    return each_word([=](int i) { return int16_t(a.v[i] ^ b.v[i]); });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
    return each_word([=](int i) { return int16_t(a.v[i] & b.v[i]); });
}
inline __m512i _mm512_slli_epi16(__m512i a, int count) {
    return each_word([=](int i) { return int16_t(uint16_t(a.v[i]) << count); });
}
inline __m512i _mm512_srai_epi16(__m512i a, int count) {
    return each_word([=](int i) { return int16_t(a.v[i] >> count); });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    const Ints x = bits_as<Ints>(a), y = bits_as<Ints>(b);
    return each_int([=](int i) { return int32_t(uint32_t(x.v[i]) + uint32_t(y.v[i])); });
}
struct Bytes64 {
    uint8_t v[64];
};
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    const Ints s = bits_as<Ints>(sum);
    const Bytes64 x = bits_as<Bytes64>(a), y = bits_as<Bytes64>(b);
    return each_int([=](int i) {
        int32_t total = s.v[i];
        for (int j = 4 * i; j < 4 * i + 4; j++) total += int32_t(x.v[j]) * int8_t(y.v[j]);
        return total;
    });
}
inline __m512i _mm512_broadcast_i32x4(__m128i a) {
    Bytes64 r;
    for (int i = 0; i < 64; i++) r.v[i] = a.v[i % 16];
    return bits_as<__m512i>(r);
}
inline __m512i _mm512_shuffle_epi8(__m512i a, __m512i b) {
    const Bytes64 x = bits_as<Bytes64>(a), y = bits_as<Bytes64>(b);
    Bytes64 r;
    for (int i = 0; i < 64; i++) r.v[i] = (y.v[i] & 128) != 0 ? 0 : x.v[i / 16 * 16 + (y.v[i] & 15)];
    return bits_as<__m512i>(r);
}
inline __m256i _mm512_cvtepi16_epi8(__m512i a) {
    __m256i r;
    for (int i = 0; i < 16; i++) r.v[i] = int16_t((a.v[2 * i] & 255) | (a.v[2 * i + 1] & 255) << 8);
    return r;
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    const Ints x = bits_as<Ints>(a);
    return each([=](int i) { return float(x.v[i]); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
    return each_int([=](int i) { return a[i] >= -0x1p31f && a[i] < 0x1p31f ? int32_t(nearbyintf(a[i])) : INT32_MIN; });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
    return each([=](int i) {
        const int half = uint16_t(a.v[i]), exponent = half >> 10 & 31, fraction = half & 1023;
        const float magnitude = exponent == 31  ? (fraction != 0 ? NAN : HUGE_VALF)
                                : exponent == 0 ? ldexpf(float(fraction), -24)
                                                : ldexpf(float(1024 + fraction), exponent - 25);
        return (half & 0x8000) != 0 ? -magnitude : magnitude;
    });
}
inline __m256i _mm512_cvtps_ph(__m512 a, int) {
    __m256i r;
    for (int i = 0; i < 16; i++) {
        const float x = fabsf(a[i]);
        int exponent = 0;
        (void)frexpf(x, &exponent);
        const int unit = exponent - 11 > -24 ? exponent - 11 : -24;  // x is a multiple of 2^unit once rounded
        unsigned half = 0;
        if (x != x) {
            half = 0x7e00;
        } else if (x >= 65520.0f) {
            half = 0x7c00;
        } else {
            const float count = nearbyintf(ldexpf(x, -unit));
            half = count < 1024 ? unsigned(count) : unsigned(unit + 24) * 1024u + unsigned(count);
        }
        r.v[i] = int16_t(half | (bits(a[i]) >> 16 & 0x8000u));
    }
    return r;
}
inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    const Ints x = bits_as<Ints>(sum);
    return each_int([=](int i) {
        // The instruction wraps; a kernel that overflows is wrong all the same, and the sanitizer sees it here.
        return x.v[i] + (a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]);
    });
}
inline __m512i _mm512_permutexvar_epi16(__m512i index, __m512i a) {
    return each_word([=](int i) { return a.v[index.v[i] & 31]; });
}
inline __m512i _mm512_broadcast_i64x4(__m256i a) {
    return each_word([=](int i) { return a.v[i % 16]; });
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA

#include "cpu/isa/avx512/simd.h"
