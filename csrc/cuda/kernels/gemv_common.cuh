// What both kernels of linear_gemv.cu do beside their products: finding their piece of the work, prefetching scales, adding splits.
#pragma once

#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

/// A piece of the work: block x of the grid is `unit`, a run of `tiles` row tiles of one part; block y a range of column tiles.
struct GemvUnit {
    int part, first_row_tile;
    int first_tile, last_tile;  ///< column tiles
};

__device__ __forceinline__ GemvUnit gemv_unit(const Gemv& command, int tiles) {
    GemvUnit out{0, int(blockIdx.x), 0, 0};
    for (;;) {
        const int units = (command.part[out.part].weight.row_tiles + tiles - 1) / tiles;
        if (out.first_row_tile < units) break;
        out.first_row_tile -= units;
        ++out.part;
    }
    out.first_row_tile *= tiles;
    const int64_t all = command.part[out.part].weight.col_tiles;
    out.first_tile = int(all * blockIdx.y / gridDim.y);
    out.last_tile = int(all * (blockIdx.y + 1) / gridDim.y);
    return out;
}

/// A scale on its way: loaded long before it is needed, decoded then.
struct ScaleFetch {
    float scale, offset;  ///< scale: the second-level one where scales are nested
    uint32_t code;
};

/// Blocks beyond the last and row tiles beyond the last give the last one's: finite, and nobody sees the product.
__device__ __forceinline__ ScaleFetch fetch_scale(const TiledWeight& w, int row_tile, int row, int block) {
    block = min(block, w.blocks - 1);
    row_tile = min(row_tile, w.row_tiles - 1);
    const int64_t at = (int64_t(row_tile) * w.blocks + block) * 16 + row;
    ScaleFetch out{0.0f, 0.0f, 0};
    if (w.nested_levels != nullptr) {
        const int64_t index = (int64_t(row_tile) * 16 + row) * w.blocks + block;
        out.code = __ldg(static_cast<const uint8_t*>(w.scales) + at);
        out.scale = __ldg(w.nested_scales + min(int(index >> w.nested_shift), w.nested_count - 1));
    } else {
        out.scale = __ldg(static_cast<const float*>(w.scales) + at);
    }
    if (w.offsets != nullptr) out.offset = __ldg(w.offsets + at);
    return out;
}

/// nested_table: the 256 levels of the scales, in shared memory.
__device__ __forceinline__ float finish_scale(const TiledWeight& w, const ScaleFetch& fetched, const float* nested_table) {
    if (w.nested_levels == nullptr) return fetched.scale;
    return __fadd_rn(__fmul_rn(nested_table[fetched.code], fetched.scale), w.nested_offset);
}

/// One element of y.
__device__ __forceinline__ void store_y(const LinearPart& part, int row, int feature, float sum) {
    if (feature >= part.weight.rows) return;
    float* y = part.y + row * part.y_stride + feature;
    if (part.bias != nullptr) sum += __ldg(part.bias + feature);
    *y = part.accumulate ? *y + sum : sum;
}

/// Called by all threads once the block's sums of its split are in `partials` [unit][split][values]: true in the last block of
/// the unit to come, which then sees the sums of all. `flag` is a word of shared memory.
__device__ __forceinline__ bool last_of_unit(const Gemv& command, uint32_t* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = atomicAdd(command.counters + blockIdx.x, 1u) == gridDim.y - 1;
        if (last) command.counters[blockIdx.x] = 0;
        *flag = last;
    }
    __syncthreads();
    const bool last = *flag != 0;
    if (last) __threadfence();
    return last;
}

}  // namespace halfbyte::cuda
