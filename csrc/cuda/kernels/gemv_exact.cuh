// y = x W^T for one or two rows of x, in float32 without tensor cores; no weight is rounded.
#pragma once

#include "cuda/kernels/gemv_common.cuh"

namespace halfbyte::cuda {

/// Row tiles of a block, and column tiles that a warp takes at a time: about four 16-byte loads a lane in flight, twice (those
/// that are being used, and the next).
template <Format kFormat>
constexpr int kExactRowTiles = Tile<kFormat>::kHasScales ? 2 : 1;
template <Format kFormat, int kScales>
constexpr int kExactColTiles = kFormat == Format::codebook4 && kScales == 1 ? 2 : 1;
constexpr int kExactMaxWarps = 16;

/// Column tiles whose x lies in shared memory at a time: 16 KB.
template <int kRows>
constexpr int kExactChunk = 64 / kRows;

/// Levels for decode_codes(): level c of lane l is word 64 c + l. What lies between is not used: with 256 bytes to a level, a code in
/// bits 8 to 11 of a word is an address as it stands.
constexpr int kWideTableFloats = 16 * 64;
__device__ __forceinline__ void fill_wide_table(float* table, const float* levels, int thread, int threads) {
    for (int i = thread; i < 16 * 32; i += threads) table[i / 32 * 64 + i % 32] = __ldg(levels + i / 32);
}

/// The eight levels of a word of codes: 11 instructions of the integer units, half as fast as others, for the addresses.
__device__ __forceinline__ void decode_codes(uint32_t word, const float* table, uint32_t lane_bytes, float (&level)[8]) {
    const uint32_t high = word >> 16;
    const uint32_t at[8] = {shift_by_product<8>(word), shift_by_product<4>(word), word, word >> 4,
                            shift_by_product<8>(high), shift_by_product<4>(high), high, high >> 4};
#pragma unroll
    for (int e = 0; e < 8; ++e)
        level[e] =
            *reinterpret_cast<const float*>(reinterpret_cast<const char*>(table) + lop3<0xea>(at[e], 0xf00u, lane_bytes));
}

/// grid: [units, splits], block: 32 x warps. The warps of a block deal out the column tiles of its range among them.
/// kScales: scales of a row in a tile: 1, 2 or 4; 0: none.
template <Format kFormat, int kScales, int kRows>
__global__ void __launch_bounds__(kExactMaxWarps * 32) gemv_exact_kernel(const __grid_constant__ Gemv command) {
    constexpr int kR = kExactRowTiles<kFormat>, kU = kExactColTiles<kFormat, kScales>, kV = Tile<kFormat>::kVectors;
    constexpr int kFeatures = kR * 16, kFetches = kScales == 0 ? 1 : kScales;
    HB_SHARED_ARRAY(float, xs, [kRows * kExactChunk<kRows> * kTileCols]);
    HB_SHARED_ARRAY(float, table, [kWideTableFloats]);
    HB_SHARED_ARRAY(float, nested_table, [256]);
    HB_SHARED_ARRAY(float, sums, [kExactMaxWarps * kFeatures * kRows]);
    HB_SHARED_ARRAY(uint32_t, flag, [1]);

    const GemvUnit unit = gemv_unit(command, kR);
    const LinearPart& part = command.part[unit.part];
    const TiledWeight& w = part.weight;
    const int thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / 32;
    const int lane = thread % 32, warp = warp_index();

    const TileReader<kFormat, kR> reader(w, unit.first_row_tile, lane);
    uint4 slots[kU][kR][kV];
    ScaleFetch slot_scales[kU][kFetches];
    const auto prefetch = [&](int tile, int u) {
        if (tile >= unit.last_tile) return;
        reader.load(tile, slots[u]);
        if constexpr (kScales > 0)
#pragma unroll
            for (int i = 0; i < kScales; ++i) slot_scales[u][i] = reader.fetch(tile, i * (4 / kScales));
    };
#pragma unroll
    for (int u = 0; u < kU; ++u) prefetch(unit.first_tile + warp + u * warps, u);

    if constexpr (kFormat == Format::codebook4) fill_wide_table(table, w.levels, thread, threads);
    if (reader.nested)
        for (int i = thread; i < 256; i += threads) nested_table[i] = __ldg(w.nested_levels + i);

    float sum[kR][2][kRows] = {};
    for (int chunk = unit.first_tile; chunk < unit.last_tile; chunk += kExactChunk<kRows>) {
        const int chunk_end = min(chunk + kExactChunk<kRows>, unit.last_tile);
        __syncthreads();
        // The four columns of a step that a lane multiplies lie side by side: one 16-byte read.
#pragma unroll
        for (int m = 0; m < kRows; ++m)
            for (int c = thread; c < (chunk_end - chunk) * kTileCols; c += threads) {
                const int col = chunk * kTileCols + c, place = c / 16 * 16 + c % 8 / 2 * 4 + c % 16 / 8 * 2 + c % 2;
                xs[m * kExactChunk<kRows> * kTileCols + place] =
                    col < w.cols ? __ldg(command.x + m * command.x_stride + col) : 0.0f;
            }
        __syncthreads();
        for (int first = chunk + warp; first < chunk_end; first += kU * warps) {
#pragma unroll
            for (int u = 0; u < kU; ++u) {
                const int tile = first + u * warps;
                if (tile >= chunk_end) break;
                const float* x = xs + (tile - chunk) * kTileCols + lane % 4 * 4;
                float block_sum[kR][2][kRows] = {};
#pragma unroll
                for (int step = 0; step < 4; ++step) {
                    constexpr int kSteps = kScales == 0 ? 4 : 4 / kScales;  // of a block within a tile
                    if (step % kSteps == 0)
#pragma unroll
                        for (int m = 0; m < kRows; ++m)
#pragma unroll
                            for (int r = 0; r < kR; ++r) block_sum[r][0][m] = block_sum[r][1][m] = 0.0f;
                    float xv[kRows][4];
#pragma unroll
                    for (int m = 0; m < kRows; ++m) {
                        const float4 four =
                            *reinterpret_cast<const float4*>(x + m * kExactChunk<kRows> * kTileCols + step * 16);
                        xv[m][0] = four.x, xv[m][1] = four.y, xv[m][2] = four.z, xv[m][3] = four.w;
                    }
#pragma unroll
                    for (int r = 0; r < kR; ++r) {
                        float level[8];
                        if constexpr (kFormat == Format::codebook4)
                            decode_codes(vector_word(slots[u][r][0], step), table, unsigned(lane) * 4, level);
                        else
                            decode_step<kFormat>(slots[u][r], step, nullptr, level);
#pragma unroll
                        for (int m = 0; m < kRows; ++m)
#pragma unroll
                            for (int i = 0; i < 4; ++i) {
                                block_sum[r][0][m] = fmaf(level[i], xv[m][i], block_sum[r][0][m]);
                                block_sum[r][1][m] = fmaf(level[4 + i], xv[m][i], block_sum[r][1][m]);
                            }
                    }
                    if ((step + 1) % kSteps != 0) continue;
                    if constexpr (kScales == 0) {
#pragma unroll
                        for (int r = 0; r < kR; ++r)
#pragma unroll
                            for (int m = 0; m < kRows; ++m) {
                                sum[r][0][m] += block_sum[r][0][m];
                                sum[r][1][m] += block_sum[r][1][m];
                            }
                    } else {
                        const float own = reader.scale(slot_scales[u][step / kSteps], nested_table);
#pragma unroll
                        for (int r = 0; r < kR; ++r)
#pragma unroll
                            for (int half = 0; half < 2; ++half) {
                                const float scale = __shfl_sync(0xffffffffu, own, r * 16 + half * 8 + lane / 4);
#pragma unroll
                                for (int m = 0; m < kRows; ++m)
                                    sum[r][half][m] = fmaf(scale, block_sum[r][half][m], sum[r][half][m]);
                            }
                        if (reader.offsets) {
                            float x_sum[kRows] = {};
#pragma unroll
                            for (int m = 0; m < kRows; ++m)
#pragma unroll
                                for (int s = step + 1 - kSteps; s <= step; ++s) {
                                    const float4 four =
                                        *reinterpret_cast<const float4*>(x + m * kExactChunk<kRows> * kTileCols + s * 16);
                                    x_sum[m] += (four.x + four.y) + (four.z + four.w);
                                }
#pragma unroll
                            for (int r = 0; r < kR; ++r)
#pragma unroll
                                for (int half = 0; half < 2; ++half) {
                                    const float offset = __shfl_sync(0xffffffffu, slot_scales[u][step / kSteps].more,
                                                                     r * 16 + half * 8 + lane / 4);
#pragma unroll
                                    for (int m = 0; m < kRows; ++m)
                                        sum[r][half][m] = fmaf(offset, x_sum[m], sum[r][half][m]);
                                }
                        }
                    }
                }
                prefetch(tile + kU * warps, u);
            }
        }
    }

    // Lanes of a row, then warps, then splits.
#pragma unroll
    for (int r = 0; r < kR; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int m = 0; m < kRows; ++m) {
                float value = sum[r][half][m];
                value += __shfl_xor_sync(0xffffffffu, value, 1);
                value += __shfl_xor_sync(0xffffffffu, value, 2);
                if (lane % 4 == 0) sums[(warp * kRows + m) * kFeatures + r * 16 + half * 8 + lane / 4] = value;
            }
    __syncthreads();
    const int m = thread / kFeatures, feature = thread % kFeatures;
    const bool owns = m < kRows;
    float total = 0.0f;
    if (owns)
        for (int i = 0; i < warps; ++i) total += sums[(i * kRows + m) * kFeatures + feature];
    if (gridDim.y > 1) {
        float* partials = command.partials + int64_t(blockIdx.x) * gridDim.y * kFeatures * kRows;
        if (owns) __stcg(partials + int(blockIdx.y) * kFeatures * kRows + thread, total);
        if (!last_of_unit(command, flag)) return;
        total = 0.0f;
        if (owns)
            for (int i = 0; i < int(gridDim.y); ++i) total += __ldcg(partials + i * kFeatures * kRows + thread);
    }
    if (owns) store_y(part, m, unit.first_row_tile * 16 + feature, total);
}

}  // namespace halfbyte::cuda
