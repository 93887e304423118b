// kF vectors of kF floats, transposed in registers.
#pragma once

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// Lanes l of v[i] and v[i + step] whose bits `step` are opposite change places: with every step once, a transposition.
template <int kStep>
inline void exchange(F* v) {
    using Index = int32_t __attribute__((vector_size(sizeof(F))));
    Index low, high;  // lane of (a, b) that comes to each lane
#pragma GCC unroll 16
    for (int l = 0; l < kF; l++) {
        low[l] = (l & kStep) == 0 ? l : kF + l - kStep;
        high[l] = (l & kStep) == 0 ? l + kStep : kF + l;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kF; i++)
        if ((i & kStep) == 0) {
            const F a = v[i], b = v[i + kStep];
            v[i] = __builtin_shuffle(a, b, low);
            v[i + kStep] = __builtin_shuffle(a, b, high);
        }
    if constexpr (2 * kStep < kF) exchange<2 * kStep>(v);
}

inline void transpose(F* v) { exchange<1>(v); }

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
