// y = x W^T in float32 throughout, for Precision::float32: values decoded exactly, one FMA an element, columns in order.
//
// A block makes 64 rows x 64 features, a thread 4 x 4 of them. Per 64 columns a warp reads 2 x 16 bytes of shared memory for 16
// FMAs: bound by FMA units (64 or 128 a cycle and multiprocessor), not by memory, from about 32 rows on.
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

namespace {

constexpr int kThreads = 256, kSide = 64;

/// Where element (column k, row or feature n) of a chunk lies: fours of n are moved about by k, so that neither those that write
/// (8 columns x 4 rows of x; 8 features x 4 columns of a fragment) nor those that read fours share banks.
__device__ __forceinline__ int place(int k, int n) { return k * kSide + (((n / 4) ^ (k % 8)) * 4 + n % 4); }

/// grid: [features / 64, rows / 64]
template <Format kFormat>
__global__ void __launch_bounds__(kThreads) linear_f32_kernel(const __grid_constant__ LinearF32 command) {
    HB_SHARED_ARRAY(float, xs, [kTileCols * kSide]);
    HB_SHARED_ARRAY(float, ws, [kTileCols * kSide]);
    HB_SHARED_ARRAY(float, table, [kTableFloats]);
    const TiledWeight& w = command.part.weight;
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    if constexpr (kFormat == Format::codebook4) {
        fill_table(table, w.levels, thread, kThreads);
        __syncthreads();
    }
    const int first_row = int(blockIdx.y) * kSide, first_feature = int(blockIdx.x) * kSide;
    const int row_tile = int(blockIdx.x) * (kSide / 16) + warp / 2;  // of the weights that this warp decodes
    float sum[4][4] = {};
    for (int tile = 0; tile < w.col_tiles; ++tile) {
        // x: 4 rows x 8 columns a warp and turn.
#pragma unroll 4
        for (int turn = 0; turn < 16; ++turn) {
            const int part = turn * 8 + warp, k = part % 8 * 8 + lane % 8, m = part / 8 * 4 + lane / 8;
            const int row = first_row + m, col = tile * kTileCols + k;
            xs[place(k, m)] = row < command.rows && col < w.cols ? __ldg(command.x + row * command.x_stride + col) : 0.0f;
        }
#pragma unroll
        for (int turn = 0; turn < 2; ++turn) {
            const int step = warp % 2 * 2 + turn;
            float level[8] = {};
            if (row_tile < w.row_tiles) {
                uint32_t words[kStepWords<kFormat>];
                load_step<kFormat>(w, row_tile, tile, step, lane, words);
                decode_words<kFormat>(words, table + lane, level);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = lane / 4 + 8 * half;
                ScaleOffset scale{0.0f, 0.0f};
                if (Tile<kFormat>::kHasScales && row_tile < w.row_tiles)
                    scale = tile_scale(w, row_tile, row, step_block(w, tile, step));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float value = level[4 * half + i];
                    if constexpr (Tile<kFormat>::kHasScales) value = tile_value(value, scale, w.offsets != nullptr);
                    ws[place(step * 16 + i / 2 * 8 + i % 2 + lane % 4 * 2, warp / 2 * 16 + row)] = value;
                }
            }
        }
        __syncthreads();
        const int m = thread / 16 * 4, n = thread % 16 * 4;
#pragma unroll 8
        for (int k = 0; k < kTileCols; ++k) {
            const float4 a = *reinterpret_cast<const float4*>(xs + place(k, m));
            const float4 b = *reinterpret_cast<const float4*>(ws + place(k, n));
            const float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int row = first_row + thread / 16 * 4 + i, feature = first_feature + thread % 16 * 4 + j;
            if (row >= command.rows || feature >= w.rows) continue;
            float* y = command.part.y + row * command.part.y_stride + feature;
            const float value = command.part.bias ? sum[i][j] + __ldg(command.part.bias + feature) : sum[i][j];
            *y = command.part.accumulate ? *y + value : value;
        }
}

}  // namespace

cudaError_t run(const LinearF32& command, cudaStream_t stream) {
    const TiledWeight& w = command.part.weight;
    if (command.rows < 0 || w.rows < 1 || w.cols < 1) return cudaErrorInvalidValue;
    if (command.rows == 0) return cudaSuccess;
    const dim3 grid(unsigned((w.rows + kSide - 1) / kSide), unsigned((command.rows + kSide - 1) / kSide));
    return with_format(w.format, [&](auto tag) {
        return launch(&linear_f32_kernel<decltype(tag)::kFormat>, grid, dim3(kThreads), 0, stream, command);
    });
}

}  // namespace halfbyte::cuda
