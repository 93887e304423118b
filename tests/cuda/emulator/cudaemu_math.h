// CUDA's arithmetic: intrinsics, fast functions, bits. Included by cudaemu.h. The fast functions are as exact as float can be: what
// hardware's lose (2 ulp and more) a test's tolerance must leave room for.
#pragma once

using std::isfinite;
using std::isinf;
using std::isnan;
using std::max;
using std::min;
using std::signbit;

// Compiled with -ffp-contract=off: one rounding an operation, as the _rn names promise.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / std::sqrt(double(a))); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }  // NaN: 0

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return float(std::pow(10.0, double(x))); }
inline float exp10f(float x, int = 0) { return float(std::pow(10.0, double(x))); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
    *sine = std::sin(x);
    *cosine = std::cos(x);
}
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * 0.70710678118654752440)); }

// Conversions saturate and take NaN for 0.
inline int cudaemu_to_int(double x) {
    return x != x ? 0 : x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : int(x);
}
inline unsigned cudaemu_to_unsigned(double x) { return !(x > 0) ? 0 : x >= 4294967295.0 ? 4294967295u : unsigned(x); }
inline int __float2int_rn(float x) { return cudaemu_to_int(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return cudaemu_to_int(std::trunc(x)); }
inline int __float2int_rd(float x) { return cudaemu_to_int(std::floor(x)); }
inline int __float2int_ru(float x) { return cudaemu_to_int(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) { return cudaemu_to_unsigned(std::nearbyint(x)); }
inline unsigned __float2uint_rz(float x) { return cudaemu_to_unsigned(std::trunc(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

template <class To, class From>
To cudaemu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline uint32_t __float_as_uint(float x) { return cudaemu_bits<uint32_t>(x); }
inline int __float_as_int(float x) { return cudaemu_bits<int>(x); }
inline float __uint_as_float(uint32_t x) { return cudaemu_bits<float>(x); }
inline float __int_as_float(int x) { return cudaemu_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cudaemu_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cudaemu_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int i = 0; i < 32; ++i) out |= (x >> i & 1) << (31 - i);
    return out;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {  // bit 3 of a selector is not looked at
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) out |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; ++i) sum += int(int8_t(unsigned(a) >> 8 * i)) * int(int8_t(unsigned(b) >> 8 * i));
    return sum;
}

// One rounding: the product of two halves is exact in double.
inline __half __hfma(__half a, __half b, __half c) {
    return __double2half(std::fma(double(__half2float(a)), double(__half2float(b)), double(__half2float(c))));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(__low2half(a), __low2half(b), __low2half(c)), __hfma(__high2half(a), __high2half(b), __high2half(c))};
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __double2bfloat16(
        std::fma(double(__bfloat162float(a)), double(__bfloat162float(b)), double(__bfloat162float(c))));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c))};
}
