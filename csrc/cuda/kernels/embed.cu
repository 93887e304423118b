// Rows of a tiled table. Bound by latency: a row is a few kilobytes.
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kTilesPerBlock = kThreads / 4;  // a thread takes what lane 4 g + q holds of the row in one tile

/// grid: [rows, column tiles / kTilesPerBlock]
template <Format kFormat>
__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ Embed command) {
    HB_SHARED_ARRAY(float, table, [kTableFloats]);
    const TiledWeight& w = command.table;
    const int thread = int(threadIdx.x), q = thread % 4;
    if constexpr (kFormat == Format::codebook4) {
        fill_table(table, w.levels, thread, kThreads);
        __syncthreads();
    }
    const int tile = int(blockIdx.y) * kTilesPerBlock + thread / 4;
    if (tile >= w.col_tiles) return;
    const int id = __ldg(command.ids + blockIdx.x);
    const bool exists = id >= 0 && id < w.rows;  // the core has looked; a wrong id must read nothing all the same
    const int row_tile = exists ? id / 16 : 0, row = exists ? id % 16 : 0, half = row / 8;
    float* out = command.out + int64_t(blockIdx.x) * command.out_stride;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint32_t words[kStepWords<kFormat>];
        load_step<kFormat>(w, row_tile, tile, step, row % 8 * 4 + q, words);
        float level[8];
        decode_words<kFormat>(words, table + thread % 32, level);
        ScaleOffset scale{1.0f, 0.0f};
        if constexpr (Tile<kFormat>::kHasScales) scale = tile_scale(w, row_tile, row, step_block(w, tile, step));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float value = half == 0 ? level[i] : level[4 + i];
            if constexpr (Tile<kFormat>::kHasScales) value = tile_value(value, scale, w.offsets != nullptr);
            if (!exists) value = __uint_as_float(0x7fffffffu);
            const int col = tile * kTileCols + step * 16 + i / 2 * 8 + i % 2 + 2 * q;
            if (col < w.cols) out[col] = command.accumulate ? out[col] + value : value;
        }
    }
}

}  // namespace

cudaError_t run(const Embed& command, cudaStream_t stream) {
    const TiledWeight& w = command.table;
    if (command.rows < 0 || w.rows < 1 || w.cols < 1) return cudaErrorInvalidValue;
    if (command.rows == 0) return cudaSuccess;
    const dim3 grid(unsigned(command.rows), unsigned((w.col_tiles + kTilesPerBlock - 1) / kTilesPerBlock));
    return with_format(w.format, [&](auto tag) {
        return launch(&embed_kernel<decltype(tag)::kFormat>, grid, dim3(kThreads), 0, stream, command);
    });
}

}  // namespace halfbyte::cuda
