// Elementary functions on vectors. The stated errors are against float64 over the whole range, in units in the last place of
// the float32 result (ulp); tests/kernels/ checks them.
#pragma once

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// e^x, 2 ulp; 0 below -104, infinity above 88.73, NaN for NaN. exp(x) = 2^n exp(r), |r| <= ln(2) / 2.
inline F vexp(F x) {
    x = vmax(set(-104.0f), vmin(set(89.0f), x));
    const F n = round_even(x * set(1.44269504f));
    // ln(2) in two parts; the product of n with the first one is exact.
    F r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    F p = set(1.395052415e-3f);
    p = fma(p, r, set(8.368908427e-3f));
    p = fma(p, r, set(4.166620597e-2f));
    p = fma(p, r, set(1.666651815e-1f));
    p = fma(p, r, set(0.5f));
    return times_power(fma(p, r * r, r) + set(1.0f), n);
}

/// 2^x for x up to 127, 2 ulp; 0 below -150, NaN for NaN.
inline F vexp2(F x) {
    x = vmax(set(-150.0f), x);
    const F n = round_even(x), f = x - n;
    F p = set(1.535336196e-4f);
    p = fma(p, f, set(1.339887502e-3f));
    p = fma(p, f, set(9.618436918e-3f));
    p = fma(p, f, set(5.550332367e-2f));
    p = fma(p, f, set(2.402264774e-1f));
    p = fma(p, f, set(6.931471825e-1f));
    return times_power(fma(p, f, set(1.0f)), n);
}

/// tanh(x), 3 ulp: a polynomial below 0.625, 1 - 2 / (e^2x + 1) above.
inline F vtanh(F x) {
    const F a = vabs(x), z = x * x;
    F p = set(-5.717045162e-3f);
    p = fma(p, z, set(2.065058798e-2f));
    p = fma(p, z, set(-5.374349654e-2f));
    p = fma(p, z, set(1.333149076e-1f));
    p = fma(p, z, set(-3.333328366e-1f));
    const F small = fma(p * z, x, x);
    const F large = copysign(set(1.0f) - set(2.0f) / (vexp(a + a) + set(1.0f)), x);
    return select_less(a, set(0.625f), small, large);
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
