// kF vectors of kF floats, transposed in registers.
#pragma once

#include <utility>

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// The halves of a and b, in runs of kStep lanes, that belong together: their low runs or their high ones, those of `a` first.
#ifdef __clang__
template <int kStep, bool kHigh, int... kLane>
inline F pick(F a, F b, std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(
        a, b, ((kLane & kStep) == 0 ? kLane + (kHigh ? kStep : 0) : kF + kLane - (kHigh ? 0 : kStep))...);
}
template <int kStep, bool kHigh>
inline F pick(F a, F b) {
    return pick<kStep, kHigh>(a, b, std::make_integer_sequence<int, kF>());
}
#else
template <int kStep, bool kHigh>
inline F pick(F a, F b) {
    using Index = int32_t __attribute__((vector_size(sizeof(F))));
    Index lanes;  // lane of (a, b) that comes to each lane
#pragma GCC unroll 16
    for (int l = 0; l < kF; l++) lanes[l] = (l & kStep) == 0 ? l + (kHigh ? kStep : 0) : kF + l - (kHigh ? 0 : kStep);
    return __builtin_shuffle(a, b, lanes);
}
#endif

/// Lanes l of v[i] and v[i + step] whose bits `step` are opposite change places: with every step once, a transposition.
template <int kStep>
inline void exchange(F* v) {
#pragma GCC unroll 16
    for (int i = 0; i < kF; i++)
        if ((i & kStep) == 0) {
            const F a = v[i], b = v[i + kStep];
            v[i] = pick<kStep, false>(a, b);
            v[i + kStep] = pick<kStep, true>(a, b);
        }
    if constexpr (2 * kStep < kF) exchange<2 * kStep>(v);
}

inline void transpose(F* v) { exchange<1>(v); }

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
