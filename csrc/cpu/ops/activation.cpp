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
struct Gelu {
    static F of(F x) { return set(0.5f) * x * (set(1.0f) + verf(x * set(0.70710678f))); }
};
struct GeluTanh {
    static F of(F x) {
        const F cube = x * x * x;
        return set(0.5f) * x * (set(1.0f) + vtanh(set(0.79788456f) * fma(set(0.044715f), cube, x)));
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
