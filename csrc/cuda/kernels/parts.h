// Parts of one product command that one kernel can take together.
#pragma once

#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

/// Calls f(tag, together, scales) for the parts of each kind at a time: of one format (tag.kFormat) and as many scales of a row in a
/// column tile, which scales_of(weight) tells. Stops at the first error.
template <class Command, class ScalesOf, class F>
cudaError_t for_each_kind(const Command& command, ScalesOf scales_of, F f) {
    bool done[kMaxParts] = {};
    for (int first = 0; first < command.parts; ++first) {
        if (done[first]) continue;
        const TiledWeight& kind = command.part[first].weight;
        const int scales = scales_of(kind);
        Command together = command;
        together.parts = 0;
        for (int i = first; i < command.parts; ++i) {
            const TiledWeight& w = command.part[i].weight;
            if (done[i] || w.format != kind.format || scales_of(w) != scales) continue;
            together.part[together.parts++] = command.part[i];
            done[i] = true;
        }
        const cudaError_t error = with_format(kind.format, [&](auto tag) { return f(tag, together, scales); });
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace halfbyte::cuda
