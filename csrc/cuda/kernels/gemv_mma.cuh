// y = x W^T for 3 to 16 rows of x on tensor cores: the weight is the 16 x 16 operand, eight rows of x the 16 x 8 one.
#pragma once

#include "cuda/kernels/gemv_common.cuh"

namespace halfbyte::cuda {

constexpr int kMmaWarps = 8;
template <Format kFormat>
constexpr int kMmaRowTiles = Tile<kFormat>::kHasScales ? 2 : 1;  ///< of a warp
template <Format kFormat, int kScales>
constexpr int kMmaColTiles = kFormat == Format::codebook4 && kScales == 1 ? 2 : 1;  ///< at a time
template <int kGroups>
constexpr int kMmaChunk = 16 / kGroups;  ///< column tiles whose x lies in shared memory: 32 KB

/// codebook4: pairs of bf16 levels, [256 bytes of two codes][32 lanes], as fill_table(): no bank conflicts.
constexpr int kPairTableWords = 256 * 32;
template <Format kFormat>
constexpr int kMmaSharedBytes = (kFormat == Format::codebook4 ? kPairTableWords * 4 : 0) + 32 * 1024;

/// A step's weights as the A operand of mma.m16n8k16, rounded to bf16: levels where there are scales, else values.
template <Format kFormat>
__device__ __forceinline__ void decode_operand(const uint32_t (&words)[kStepWords<kFormat>], const unsigned char* pairs,
                                               uint32_t lane_bytes, uint32_t (&a)[4]) {
    if constexpr (kFormat == Format::codebook4) {
        const uint32_t at[4] = {shift_by_product<7>(words[0]), words[0] >> 9, words[0] >> 1, words[0] >> 17};
#pragma unroll
        for (int i = 0; i < 4; ++i)
            a[i] = *reinterpret_cast<const uint32_t*>(pairs + lop3<0xea>(at[i], 0x7f80u, lane_bytes));
    } else if constexpr (kFormat == Format::bf16) {
        a[0] = words[0], a[2] = words[1], a[1] = words[2], a[3] = words[3];
    } else {
        float level[8];
        decode_words<kFormat>(words, nullptr, level);
        a[0] = pack_bf16(level[0], level[1]);
        a[2] = pack_bf16(level[2], level[3]);
        a[1] = pack_bf16(level[4], level[5]);
        a[3] = pack_bf16(level[6], level[7]);
    }
}

/// Two columns of x as bf16 and what that leaves, as bf16 again: the sum is exact to 2^-17 or better.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t& rounded, uint32_t& rest) {
    rounded = pack_bf16(low, high);
    rest = pack_bf16(low - __uint_as_float(rounded << 16), high - __uint_as_float(rounded & 0xffff0000u));
}

/// grid: [units, splits]. Each warp has row tiles of its own; all share x.
/// kScales as in gemv_exact_kernel; kGroups: of eight rows of x.
template <Format kFormat, int kScales, int kGroups>
__global__ void __launch_bounds__(kMmaWarps * 32, 2) gemv_mma_kernel(const __grid_constant__ Gemv command) {
    constexpr int kR = kMmaRowTiles<kFormat>, kU = kMmaColTiles<kFormat, kScales>, kV = Tile<kFormat>::kVectors;
    constexpr int kThreads = kMmaWarps * 32, kFeatures = kMmaWarps * kR * 16, kFetches = kScales == 0 ? 1 : kScales;
    constexpr int kChunk = kMmaChunk<kGroups>;
    HB_DYNAMIC_SHARED(dynamic);
    HB_SHARED_ARRAY(float, x_sums, [kChunk * 4 * kGroups * 8]);  // [step][row of x]: over 16 columns, for offsets
    HB_SHARED_ARRAY(float, nested_table, [256]);
    HB_SHARED_ARRAY(uint32_t, flag, [1]);
    auto* xs = reinterpret_cast<uint4*>(dynamic);  // [step][group][lane]: both B operands of a lane
    auto* pairs = reinterpret_cast<uint32_t*>(dynamic + 32 * 1024);

    const GemvUnit unit = gemv_unit(command, kMmaWarps * kR);
    const LinearPart& part = command.part[unit.part];
    const TiledWeight& w = part.weight;
    const int thread = int(threadIdx.x), lane = thread % 32, warp = warp_index();

    const TileReader<kFormat, kR> reader(w, unit.first_row_tile + warp * kR, lane);
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
    for (int u = 0; u < kU; ++u) prefetch(unit.first_tile + u, u);

    if constexpr (kFormat == Format::codebook4)
        for (int i = thread; i < kPairTableWords; i += kThreads)
            pairs[i] = pack_bf16(__ldg(w.levels + i / 32 % 16), __ldg(w.levels + i / 512));
    if (reader.nested)
        for (int i = thread; i < 256; i += kThreads) nested_table[i] = __ldg(w.nested_levels + i);

    float sum[kR][kGroups][4] = {};
    for (int chunk = unit.first_tile; chunk < unit.last_tile; chunk += kChunk) {
        const int chunk_end = min(chunk + kChunk, unit.last_tile);
        __syncthreads();
        for (int i = thread; i < (chunk_end - chunk) * 4 * kGroups * 32; i += kThreads) {
            const int row = i / 32 % kGroups * 8 + i % 32 / 4, col = chunk * kTileCols + i / (32 * kGroups) * 16 + i % 4 * 2;
            const float* x = command.x + row * command.x_stride + col;
            float four[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int at = j / 2 * 8 + j % 2;
                four[j] = row < command.rows && col + at < w.cols ? __ldg(x + at) : 0.0f;
            }
            uint4 both;
            split_pair(four[0], four[1], both.x, both.z);
            split_pair(four[2], four[3], both.y, both.w);
            xs[i] = both;
            if (reader.offsets) {
                float four_sum = (four[0] + four[1]) + (four[2] + four[3]);
                four_sum += __shfl_xor_sync(0xffffffffu, four_sum, 1);
                four_sum += __shfl_xor_sync(0xffffffffu, four_sum, 2);
                if (i % 4 == 0) x_sums[i / 4] = four_sum;
            }
        }
        __syncthreads();
        for (int first = chunk; first < chunk_end; first += kU) {
#pragma unroll
            for (int u = 0; u < kU; ++u) {
                const int tile = first + u;
                if (tile >= chunk_end) break;
                float block_sum[kR][kGroups][4] = {};
#pragma unroll
                for (int step = 0; step < 4; ++step) {
                    constexpr int kSteps = kScales == 0 ? 4 : 4 / kScales;  // of a block within a tile
                    if (step % kSteps == 0)
#pragma unroll
                        for (int n = 0; n < kGroups; ++n)
#pragma unroll
                            for (int i = 0; i < 4; ++i)
#pragma unroll
                                for (int r = 0; r < kR; ++r) block_sum[r][n][i] = 0.0f;
                    uint32_t a[kR][4];
#pragma unroll
                    for (int r = 0; r < kR; ++r) {
                        uint32_t words[kStepWords<kFormat>];
                        step_words<kFormat>(slots[u][r], step, words);
                        decode_operand<kFormat>(words, dynamic + 32 * 1024, unsigned(lane) * 4, a[r]);
                    }
#pragma unroll
                    for (int n = 0; n < kGroups; ++n) {
                        const uint4 both = xs[(((tile - chunk) * 4 + step) * kGroups + n) * 32 + lane];
                        const uint32_t rounded[2] = {both.x, both.y}, rest[2] = {both.z, both.w};
#pragma unroll
                        for (int r = 0; r < kR; ++r) {
                            auto& d = kScales == 0 ? sum[r][n] : block_sum[r][n];
                            mma_bf16(d, a[r], rest);
                            mma_bf16(d, a[r], rounded);
                        }
                    }
                    if constexpr (kScales > 0) {
                        if ((step + 1) % kSteps != 0) continue;
                        const float own = reader.scale(slot_scales[u][step / kSteps], nested_table);
#pragma unroll
                        for (int r = 0; r < kR; ++r)
#pragma unroll
                            for (int half = 0; half < 2; ++half) {
                                const float scale = __shfl_sync(0xffffffffu, own, r * 16 + half * 8 + lane / 4);
#pragma unroll
                                for (int n = 0; n < kGroups; ++n)
#pragma unroll
                                    for (int i = 2 * half; i < 2 * half + 2; ++i)
                                        sum[r][n][i] = fmaf(scale, block_sum[r][n][i], sum[r][n][i]);
                            }
                        if (!reader.offsets) continue;
#pragma unroll
                        for (int n = 0; n < kGroups; ++n) {
                            float2 x_sum{0.0f, 0.0f};
#pragma unroll
                            for (int s = step + 1 - kSteps; s <= step; ++s) {
                                const float2 two = *reinterpret_cast<const float2*>(
                                    x_sums + ((tile - chunk) * 4 + s) * kGroups * 8 + n * 8 + lane % 4 * 2);
                                x_sum.x += two.x, x_sum.y += two.y;
                            }
#pragma unroll
                            for (int r = 0; r < kR; ++r)
#pragma unroll
                                for (int half = 0; half < 2; ++half) {
                                    const float offset = __shfl_sync(0xffffffffu, slot_scales[u][step / kSteps].more,
                                                                     r * 16 + half * 8 + lane / 4);
                                    sum[r][n][2 * half] = fmaf(offset, x_sum.x, sum[r][n][2 * half]);
                                    sum[r][n][2 * half + 1] = fmaf(offset, x_sum.y, sum[r][n][2 * half + 1]);
                                }
                        }
                    }
                }
                prefetch(tile + kU, u);
            }
        }
    }

    const bool split = gridDim.y > 1;
    float* partials = split ? command.partials + int64_t(blockIdx.x) * gridDim.y * kGroups * 8 * kFeatures : nullptr;
#pragma unroll
    for (int r = 0; r < kR; ++r)
#pragma unroll
        for (int n = 0; n < kGroups; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = n * 8 + lane % 4 * 2 + i % 2, feature = (warp * kR + r) * 16 + i / 2 * 8 + lane / 4;
                if (row >= command.rows) continue;
                if (split)
                    __stcg(partials + (int(blockIdx.y) * kGroups * 8 + row) * kFeatures + feature, sum[r][n][i]);
                else
                    store_y(part, row, unit.first_row_tile * 16 + feature, sum[r][n][i]);
            }
    if (!split || !last_of_unit(command, flag)) return;
    for (int i = thread; i < command.rows * kFeatures; i += kThreads) {
        float total = 0.0f;
        for (int s = 0; s < int(gridDim.y); ++s) total += __ldcg(partials + s * kGroups * 8 * kFeatures + i);
        store_y(part, i / kFeatures, unit.first_row_tile * 16 + i % kFeatures, total);
    }
}

}  // namespace halfbyte::cuda
