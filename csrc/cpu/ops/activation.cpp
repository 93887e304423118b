// Activations, alone and as gates.
#include "cpu/ops/math.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

struct None {
    static F of(F x) { return x; }
};
struct Relu {
    static F of(F x) { return vmax(zero(), x); }  // NaN stays NaN
};
/// x Phi(x), Phi being the normal distribution's. Phi(-a) = 2^Q(a) on one polynomial Q (least maximum of the error of Phi), so that
/// neither sign subtracts from 1: x > 0 has x - x Phi(-x), x < 0 has x Phi(x). Error at most |x| 2^-22 (of Phi: 6e-8 in Q, as
/// much in the power); from 15 on Phi(-a) is 0.
struct Gelu {
    static F of(F x) {
        const F a = vmin(set(15.0f), vabs(x));
        F q = set(4.37682705e-8f);
        q = fma(q, a, set(-1.65922469e-6f));
        q = fma(q, a, set(2.18955107e-5f));
        q = fma(q, a, set(-1.01113704e-4f));
        q = fma(q, a, set(-3.35778311e-4f));
        q = fma(q, a, set(7.30627738e-3f));
        q = fma(q, a, set(-5.26491263e-2f));
        q = fma(q, a, set(-4.59163089e-1f));
        q = fma(q, a, set(-1.15111009f));
        q = fma(q, a, set(-9.99999908e-1f));
        const F n = round_even(q), r = q - n;
        F p = set(0.00132764713f);
        p = fma(p, r, set(0.00967554096f));
        p = fma(p, r, set(0.0555071309f));
        p = fma(p, r, set(0.240221202f));
        p = fma(p, r, set(0.693146944f));
        p = fma(p, r, set(1.00000012f));
        return fma(zero() - a, times_power(p, n), vmax(zero(), x));
    }
};
/// 0.5 x (1 + tanh(y)) = x / (1 + e^(-2y)), y = sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
    static F of(F x) {
        const F y = x * fma(set(0.07135481628f), x * x, set(1.595769122f));
        return x / (set(1.0f) + vexp(zero() - y));
    }
};
struct Silu {
    static F of(F x) { return x / (set(1.0f) + vexp(zero() - x)); }
};
struct Tanh {
    static F of(F x) { return vtanh(x); }
};

template <class Function>
void activate(float* x, int64_t n) {
    int64_t i = 0;
    for (; i + kF <= n; i += kF) store(x + i, Function::of(load(x + i)));
    if (i < n) store_tail(x + i, Function::of(load_tail(x + i, n - i)), n - i);
}

template <class Function>
void gate(float* x, const float* up, int64_t n) {
    int64_t i = 0;
    for (; i + kF <= n; i += kF) store(x + i, Function::of(load(x + i)) * load(up + i));
    if (i < n) store_tail(x + i, Function::of(load_tail(x + i, n - i)) * load_tail(up + i, n - i), n - i);
}

}  // namespace

const Activations kActivationKernels = {
    {activate<None>, activate<Relu>, activate<Gelu>, activate<GeluTanh>, activate<Silu>, activate<Tanh>},
    {gate<None>, gate<Relu>, gate<Gelu>, gate<GeluTanh>, gate<Silu>, gate<Tanh>},
};

}  // namespace halfbyte::cpu::HALFBYTE_ISA
