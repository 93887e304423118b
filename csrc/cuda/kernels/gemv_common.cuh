// What both kernels of linear_gemv.cu do beside their products: finding their piece of the work, prefetching scales, adding splits.
#pragma once

#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

/// The same number in all lanes, which the compiler then knows: branches on it need no care for lanes that go astray.
__device__ __forceinline__ int warp_index() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0); }

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
    float scale;  ///< nested scales: the second-level one
    float more;   ///< nested scales: the code; else the offset
};

/// What a lane reads of kRowTiles row tiles from `row_tile` on: its vectors of all of them, and the scales of row lane % 16 of row
/// tile lane / 16. Row tiles and blocks beyond the last give the last one's: finite, and nobody sees what becomes of them.
template <Format kFormat, int kRowTiles>
struct TileReader {
    static constexpr int kV = Tile<kFormat>::kVectors;
    const TiledWeight& w;
    const uint4* codes;   ///< of column tile 0 of the first row tile
    int64_t second;       ///< from there to the second row tile
    int64_t first_scale;  ///< index of block 0
    int first_nested;     ///< row * blocks
    bool nested, offsets;

    __device__ __forceinline__ TileReader(const TiledWeight& weight, int row_tile, int lane) : w(weight) {
        const int last = w.row_tiles - 1, first = min(row_tile, last);
        codes = tile_vector<kFormat>(w, first, 0, 0, lane);
        second = first < last ? int64_t(w.col_tiles) * kV * 32 : 0;
        const int scale_tile = min(row_tile + lane / 16, last);
        first_scale = int64_t(scale_tile) * w.blocks * 16 + lane % 16;
        first_nested = (scale_tile * 16 + lane % 16) * w.blocks;
        nested = Tile<kFormat>::kHasScales && w.nested_levels != nullptr;
        offsets = Tile<kFormat>::kHasScales && w.offsets != nullptr;
    }
    __device__ __forceinline__ void load(int col_tile, uint4 (&out)[kRowTiles][kV]) const {
        static_assert(kRowTiles <= 2);
        const uint4* from = codes + int64_t(col_tile) * (kV * 32);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int v = 0; v < kV; ++v) out[r][v] = load_once(from + r * second + v * 32);
    }
    __device__ __forceinline__ ScaleFetch fetch(int col_tile, int step) const {
        const int block = min(step_block(w, col_tile, step), w.blocks - 1);
        const int64_t at = first_scale + block * 16;
        ScaleFetch out{0.0f, 0.0f};
        if (nested) {
            out.scale = __ldg(w.nested_scales + min((first_nested + block) >> w.nested_shift, w.nested_count - 1));
            out.more = __uint_as_float(__ldg(static_cast<const uint8_t*>(w.scales) + at));
        } else {
            out.scale = __ldg(static_cast<const float*>(w.scales) + at);
            if (offsets) out.more = __ldg(w.offsets + at);
        }
        return out;
    }
    /// nested_table: the 256 levels of the scales, in shared memory.
    __device__ __forceinline__ float scale(const ScaleFetch& fetched, const float* nested_table) const {
        if (!nested) return fetched.scale;
        return __fadd_rn(__fmul_rn(nested_table[__float_as_uint(fetched.more)], fetched.scale), w.nested_offset);
    }
};

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
