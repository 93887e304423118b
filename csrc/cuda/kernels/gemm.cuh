// y = x W^T for many rows of x on tensor cores: mma.m16n8k16, the weight the 16 x 16 operand, eight rows of x the 16 x 8 one.
//
// A block makes 128 features of up to 128 rows. Each of its four warps has 32 features and all rows, so that a weight is decoded
// once in the block, in registers, straight into its fragment; rows of x are read from shared memory by all four. Both come
// through cp.async, three or four column tiles ahead: codes in the order of fragments (a lane's part is one 16-byte load without
// bank conflicts), rows of x with their 16-byte chunks swapped (chunk ^ row % 8), so that ldmatrix has none either.
//
// Bounds, for 16 columns of a block of 128 rows in NF4 on an A100 (1,024 products a cycle and multiprocessor): tensor cores 256
// cycles; the load/store unit 128 (ldmatrix) + 64 (levels from the table) + 4 (codes); arithmetic of the decoding about 60 of the
// 512 slots. With one block to a multiprocessor the decoding of a warp is not hidden behind its own products, only behind those
// of others: two blocks where shared memory allows.
#pragma once

#include "cuda/kernels/tiles.cuh"

namespace halfbyte::cuda {

constexpr int kGemmWarps = 4, kGemmThreads = kGemmWarps * 32;
constexpr int kGemmRowTiles = 2;                        ///< of a warp
constexpr int kGemmTiles = kGemmWarps * kGemmRowTiles;  ///< row tiles of a block
constexpr int kGemmFeatures = kGemmTiles * 16;
constexpr int kGemmRowBytes = kTileCols * 2;  ///< of a row of x in a column tile: eight chunks of 16

/// kRows: of x in a block.
template <Format kFormat, int kScales, int kRows>
struct GemmShape {
    static constexpr int kVectors = Tile<kFormat>::kVectors;
    static constexpr int kRowsBytes = kRows * kGemmRowBytes;
    static constexpr int kCodeBytes = kGemmTiles * kVectors * 512;
    static constexpr int kStageBytes = kRowsBytes + kCodeBytes;
    static constexpr int kTableBytes = kFormat == Format::codebook4 ? kTableFloats * 4 : 0;
    static constexpr int kStaticBytes = 2 * (kScales == 0 ? 1 : kScales) * kGemmFeatures * 8 + 16;
    static constexpr int kRoom = (99 << 10) - kTableBytes - kStaticBytes;  // sm_86, sm_89 and sm_120 have 99 KB
    static constexpr int kStages = kRoom / kStageBytes >= 4 ? 4 : kRoom / kStageBytes;
    static constexpr int kSharedBytes = kTableBytes + kStages * kStageBytes;
    static_assert(kStages >= 2);
};

/// The work of a block: row tiles first_tile .. of one part, rows of x from first_row on, column tiles first .. last - 1.
struct GemmUnit {
    int part, first_tile, first_row, first, last;
};

__device__ __forceinline__ GemmUnit gemm_unit(const Gemm& command, int rows) {
    GemmUnit unit{0, int(blockIdx.x), int(blockIdx.y) * rows, 0, 0};
    for (;;) {
        const int blocks = (command.part[unit.part].weight.row_tiles + kGemmTiles - 1) / kGemmTiles;
        if (unit.first_tile < blocks) break;
        unit.first_tile -= blocks;
        ++unit.part;
    }
    unit.first_tile *= kGemmTiles;
    const int64_t all = command.part[unit.part].weight.col_tiles;
    unit.first = int(all * blockIdx.z / gridDim.z);
    unit.last = int(all * (blockIdx.z + 1) / gridDim.z);
    return unit;
}

/// A step's weights as the A operand: the exact values, rounded once to bf16.
template <Format kFormat>
__device__ __forceinline__ void gemm_operand(const uint32_t (&words)[kStepWords<kFormat>], const float* lane_table,
                                             const float2 (&scales)[2], bool has_offsets, uint32_t (&a)[4]) {
    if constexpr (kFormat == Format::bf16) {
        a[0] = words[0], a[2] = words[1], a[1] = words[2], a[3] = words[3];
    } else {
        float value[8];
        decode_words<kFormat>(words, lane_table, value);
        if constexpr (Tile<kFormat>::kHasScales) {
#pragma unroll
            for (int e = 0; e < 8; ++e) value[e] = tile_value(value[e], {scales[e / 4].x, scales[e / 4].y}, has_offsets);
        }
        a[0] = pack_bf16(value[0], value[1]);
        a[2] = pack_bf16(value[2], value[3]);
        a[1] = pack_bf16(value[4], value[5]);
        a[3] = pack_bf16(value[6], value[7]);
    }
}

/// grid: [blocks of features of all parts, blocks of rows, splits of the columns]. kScales: of a row in a column tile; 0: floats.
template <Format kFormat, int kScales, int kRows>
__global__ void __launch_bounds__(kGemmThreads, 1) gemm_kernel(const __grid_constant__ Gemm command) {
    using Shape = GemmShape<kFormat, kScales, kRows>;
    constexpr int kV = Shape::kVectors, kStages = Shape::kStages, kBlocks = kScales == 0 ? 1 : kScales;
    constexpr int kGroups = kRows / 8;  // of eight rows of x
    HB_DYNAMIC_SHARED(dynamic);
    HB_SHARED_ARRAY(uint32_t, flag, [1]);
    HB_SHARED_ARRAY(float2, scale_table, [2][kBlocks][kGemmFeatures]);
    auto* const table = reinterpret_cast<float*>(dynamic);
    unsigned char* const stages = dynamic + Shape::kTableBytes;

    const GemmUnit unit = gemm_unit(command, kRows);
    const LinearPart& part = command.part[unit.part];
    const TiledWeight& w = part.weight;
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    // Chunk thread % 8 of rows thread / 8, and every 16 rows from there on: their chunks are swapped alike.
    const int64_t x_pitch = int64_t(w.col_tiles) * kGemmRowBytes;
    const int x_rows = command.rows - unit.first_row - thread / 8;  // from this thread's first on
    const auto* const x =
        static_cast<const unsigned char*>(command.x) + (unit.first_row + thread / 8) * x_pitch + thread % 8 * 16;
    const int x_place = thread / 8 * kGemmRowBytes + (thread % 8 ^ (thread / 8 % 8)) * 16;

    const auto fetch = [&](int tile) {
        unsigned char* const stage = stages + (tile - unit.first) % kStages * Shape::kStageBytes;
        const unsigned char* from = x + int64_t(tile) * kGemmRowBytes;
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
            const bool valid = i * 16 < x_rows;
            cp_async_16(stage + x_place + i * 16 * kGemmRowBytes, valid ? from : static_cast<const void*>(command.x), valid);
            from += 16 * x_pitch;
        }
#pragma unroll 1  // as many pointers as turns would be kept
        for (int i = 0; i < kGemmTiles * kV / kGemmWarps; ++i) {
            const int vector = i * kGemmWarps + warp;
            const int row_tile = min(unit.first_tile + vector / kV, w.row_tiles - 1);  // beyond the last: nobody looks
            cp_async_16(stage + Shape::kRowsBytes + (vector * 32 + lane) * 16,
                        tile_vector<kFormat>(w, row_tile, tile, vector % kV, lane), true);
        }
    };
    // Thread t has the scales of feature t of the block on their way, a column tile ahead.
    ScaleOffset own[kBlocks] = {};
    const int own_tile = min(unit.first_tile + thread / 16, w.row_tiles - 1);
    const auto fetch_scales = [&](int tile) {
        if constexpr (kScales > 0) {
#pragma unroll
            for (int b = 0; b < kBlocks; ++b)
                own[b] = tile_scale(w, own_tile, thread % 16, step_block(w, tile, b * (4 / kBlocks)));
        }
    };

#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        if (unit.first + i < unit.last) fetch(unit.first + i);
        cp_async_commit();
    }
    if (unit.first < unit.last) fetch_scales(unit.first);
    if constexpr (kFormat == Format::codebook4) fill_table(table, w.levels, thread, kGemmThreads);
    const bool has_offsets = kScales > 0 && w.offsets != nullptr;

    float sum[kGemmRowTiles][kGroups][4] = {};
    // What a lane names for ldmatrix: row lane % 8 + 8 (lane / 16) of 16 rows of x, chunk lane / 8 % 2 of a step's two.
    const int matrix_row = lane % 8 + lane / 16 * 8, matrix_chunk = lane / 8 % 2;
    for (int tile = unit.first; tile < unit.last; ++tile) {
        cp_async_wait<kStages - 2>();
        auto& scales = scale_table[(tile - unit.first) % 2];
        if constexpr (kScales > 0) {
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) scales[b][thread] = make_float2(own[b].scale, own[b].offset);
        }
        __syncthreads();  // all have waited for their part of this tile, and have read the one before it
        if (tile + kStages - 1 < unit.last) fetch(tile + kStages - 1);
        cp_async_commit();
        if (tile + 1 < unit.last) fetch_scales(tile + 1);

        const unsigned char* const stage = stages + (tile - unit.first) % kStages * Shape::kStageBytes;
        const auto* const codes =
            reinterpret_cast<const uint4*>(stage + Shape::kRowsBytes) + warp * kGemmRowTiles * kV * 32 + lane;
        constexpr int kWords = kStepWords<kFormat>, kHeld = kWords < 4 ? 1 : kWords / 4;
        uint4 held[kGemmRowTiles][kHeld];  // what the lane has of the vectors of this step
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            uint32_t a[kGemmRowTiles][4];
#pragma unroll
            for (int r = 0; r < kGemmRowTiles; ++r) {
                if (step * kWords % 4 == 0) {
#pragma unroll
                    for (int v = 0; v < kHeld; ++v) held[r][v] = codes[(r * kV + step * kWords / 4 + v) * 32];
                }
                uint32_t words[kWords];
#pragma unroll
                for (int i = 0; i < kWords; ++i) words[i] = vector_word(held[r][i / 4], (step * kWords + i) % 4);
                float2 scale[2] = {};
                if constexpr (kScales > 0) {
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        scale[half] = scales[step * kBlocks / 4][(warp * kGemmRowTiles + r) * 16 + half * 8 + lane / 4];
                }
                gemm_operand<kFormat>(words, table + lane, scale, has_offsets, a[r]);
            }
#pragma unroll
            for (int pair = 0; pair < kGroups / 2; ++pair) {
                const int row = pair * 16 + matrix_row, chunk = step * 2 + matrix_chunk;
                uint32_t b[4];
                ldmatrix_x4(b, stage + row * kGemmRowBytes + (chunk ^ (row % 8)) * 16);
                const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
                for (int r = 0; r < kGemmRowTiles; ++r) {
                    mma_bf16(sum[r][2 * pair], a[r], first);
                    mma_bf16(sum[r][2 * pair + 1], a[r], second);
                }
            }
        }
    }

    // Through shared memory to threads that have a feature each: its bias is read once, and a warp writes 128 bytes in a row.
    cp_async_wait<0>();
    __syncthreads();
    auto* const room =
        reinterpret_cast<float*>(stages);  // [rows][kPitch]: the four rows of a store fall into banks of their own
    constexpr int kPitch = kGemmFeatures + 4;
    static_assert(kRows * kPitch * 4 <= kStages * Shape::kStageBytes);
#pragma unroll
    for (int r = 0; r < kGemmRowTiles; ++r)
#pragma unroll
        for (int n = 0; n < kGroups; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = n * 8 + lane % 4 * 2 + i % 2;
                room[row * kPitch + (warp * kGemmRowTiles + r) * 16 + i / 2 * 8 + lane / 4] = sum[r][n][i];
            }
    __syncthreads();
    static_assert(kGemmFeatures == kGemmThreads);
    const int rows = min(kRows, command.rows - unit.first_row);
    const int block = int(blockIdx.y * gridDim.x + blockIdx.x), splits = int(gridDim.z);
    constexpr int kValues = kRows * kGemmFeatures;
    float* const partials = splits > 1 ? command.partials + int64_t(block) * splits * kValues + thread : nullptr;
    if (splits > 1) {
#pragma unroll 4
        for (int row = 0; row < rows; ++row)
            __stcg(partials + int(blockIdx.z) * kValues + row * kGemmFeatures, room[row * kPitch + thread]);
        // The last block to come adds the sums of all splits, in their order.
        __threadfence();
        __syncthreads();
        if (thread == 0) {
            const bool last = atomicAdd(command.counters + block, 1u) == unsigned(splits) - 1;
            if (last) command.counters[block] = 0;
            *flag = last;
        }
        __syncthreads();
        if (*flag == 0) return;
        __threadfence();
    }
    const int feature = unit.first_tile * 16 + thread;
    if (feature >= w.rows) return;
    const float bias = part.bias != nullptr ? __ldg(part.bias + feature) : 0.0f;
    float* y = part.y + unit.first_row * part.y_stride + feature;
#pragma unroll 4
    for (int row = 0; row < rows; ++row, y += part.y_stride) {
        float total = 0.0f;
        if (splits == 1) {
            total = room[row * kPitch + thread];
        } else {
            for (int s = 0; s < splits; ++s) total += __ldcg(partials + s * kValues + row * kGemmFeatures);
        }
        total += bias;
        *y = part.accumulate ? *y + total : total;
    }
}

}  // namespace halfbyte::cuda
