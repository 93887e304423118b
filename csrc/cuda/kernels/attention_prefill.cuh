// Attention of many queries on tensor cores (FlashAttention-2's order of work, arXiv:2307.08691): 16-bit operands, float32 sums,
// scores and softmax; probabilities are rounded once, to the operands' type. A block has 4 warps of 16 * kRowTiles queries of one
// head and takes keys in tiles of 64. Keys are loaded while the previous tile's values are multiplied, values while the scores are.
// Bound by the tensor cores where a warp has 32 queries: of a tile of 64 keys of 128 dims it makes 256 multiplications (2,048 cycles of
// its tensor core on sm_80) and reads 40 KiB (1,280 cycles of shared memory for 4 warps). With 16 queries 128 multiplications (1,024
// cycles) stand against 36 KiB (1,152): shared memory bounds. f32 and i8 sources are converted by the same warps, and only other
// blocks hide the loads: L2 bounds those.
#pragma once

#include "cuda/kernels/attention.cuh"

namespace halfbyte::cuda::attention {

constexpr int kPrefillThreads = 128, kPrefillWarps = kPrefillThreads / 32;

struct OperandF16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_f16(low, high); }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
        const uint32_t y[2] = {y0, y1};
        mma_f16(d, x, y);
    }
};
struct OperandBf16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
        const uint32_t y[2] = {y0, y1};
        mma_bf16(d, x, y);
    }
};

/// Rows of kWidth 16-bit elements in shared memory, in chunks of 8. A row has an odd number of chunks, one of them unused: the 8 rows
/// that ldmatrix reads at once lie in different banks, and every address is one register and a constant.
template <int kWidth>
struct Tile {
    static constexpr int kChunks = kWidth / 8, kRowBytes = 16 * (kChunks + 1);
    static __host__ __device__ constexpr int at(int row, int chunk) { return row * kRowBytes + chunk * 16; }
    /// How a block goes through a tile: kLanes threads share a row, each with kPerRow chunks kLanes apart.
    static constexpr int kLanes = (kChunks & (kChunks - 1)) == 0 ? kChunks : 4, kPerRow = kChunks / kLanes;
    static constexpr int kPassRows = kPrefillThreads / kLanes;
};

template <int kWidth, int kRowTiles>
constexpr int prefill_shared_bytes() {
    return Tile<kWidth>::at(2 * kTileKeys + 16 * kRowTiles * kPrefillWarps, 0);
}

/// Elements [column, column + 8) of a row of floats; zeros from head_dim, a multiple of 4, on.
__device__ __forceinline__ void load_eight(const float* row, int column, int head_dim, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool there = column + 4 * i < head_dim;
        const float4 x = there ? __ldg(reinterpret_cast<const float4*>(row + column + 4 * i)) : make_float4(0, 0, 0, 0);
        out[4 * i] = x.x, out[4 * i + 1] = x.y, out[4 * i + 2] = x.z, out[4 * i + 3] = x.w;
    }
}

template <class Operand>
__device__ __forceinline__ uint4 pack_eight(const float (&x)[8]) {
    return make_uint4(Operand::pack(x[0], x[1]), Operand::pack(x[2], x[3]), Operand::pack(x[4], x[5]),
                      Operand::pack(x[6], x[7]));
}

/// 64 rows of keys or values from row0 on into shared memory, zeros from `count` on: in the background where they are of the
/// operands' type, else converted on the way.
template <class Operand, int kWidth>
__device__ __forceinline__ void stage(unsigned char* tile, const KvSource& source, int head, int64_t row0, int count,
                                      int head_dim) {
    using Rows = Tile<kWidth>;
    constexpr int kPasses = kTileKeys / Rows::kPassRows;
    const int first = threadIdx.x / Rows::kLanes, lane = threadIdx.x % Rows::kLanes, width = padded_width(head_dim);
    const int64_t base = head * source.head_stride + (row0 + first) * source.row_stride;
    const int64_t pass_stride = Rows::kPassRows * source.row_stride;
    unsigned char* to = tile + Rows::at(first, lane);
    if (source.element == Element::f16 || source.element == Element::bf16) {
        const auto* from = static_cast<const uint16_t*>(source.data) + base + 8 * lane;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass, from += pass_stride)
#pragma unroll
            for (int c = 0; c < Rows::kPerRow; ++c) {
                const int column = 8 * Rows::kLanes * c;
                const bool there = first + pass * Rows::kPassRows < count && 8 * lane + column < width;
                cp_async_16(to + Rows::at(pass * Rows::kPassRows, c * Rows::kLanes), there ? from + column : source.data,
                            there);
            }
    } else if (source.element == Element::i8) {
        const auto* from = static_cast<const int8_t*>(source.data) + base + 8 * lane;
        const float* scales = source.scales + head * source.scale_stride + row0 + first;
#pragma unroll 4
        for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
            for (int c = 0; c < Rows::kPerRow; ++c) {
                const int column = 8 * Rows::kLanes * c;
                float x[8] = {};
                if (first + pass * Rows::kPassRows < count && 8 * lane + column < width) {
                    const uint2 raw = __ldg(reinterpret_cast<const uint2*>(from + pass * pass_stride + column));
                    const float scale = scales[pass * Rows::kPassRows];
#pragma unroll
                    for (int e = 0; e < 8; ++e) x[e] = signed_byte(e < 4 ? raw.x : raw.y, e % 4) * scale;
                }
                *reinterpret_cast<uint4*>(to + Rows::at(pass * Rows::kPassRows, c * Rows::kLanes)) = pack_eight<Operand>(x);
            }
    } else {
        const auto* from = static_cast<const float*>(source.data) + base;
#pragma unroll 2
        for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
            for (int c = 0; c < Rows::kPerRow; ++c) {
                float x[8] = {};
                if (first + pass * Rows::kPassRows < count)
                    load_eight(from + pass * pass_stride, 8 * (lane + c * Rows::kLanes), head_dim, x);
                *reinterpret_cast<uint4*>(to + Rows::at(pass * Rows::kPassRows, c * Rows::kLanes)) = pack_eight<Operand>(x);
            }
    }
}

/// Softcap and bias on the scores of one query and keys key0 + 8 n + e.
template <int kCount>
__device__ __forceinline__ void vary(const Attention& a, const AttentionSequence& s, int head, int query, int key0,
                                     float (&score)[kCount]) {
    if (a.softcap > 0) {
        const float cap = a.softcap * kLog2E, inverse = __fdividef(1.0f, cap);
#pragma unroll
        for (int i = 0; i < kCount; ++i) score[i] = soft_cap(score[i], cap, inverse);
    }
    if (a.bias != nullptr) {
        const float* bias = bias_row(a, head, query);
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            if (const int key = key0 + i / 2 * 8 + i % 2; key < s.keys) score[i] += bias[key] * kLog2E;
    }
}

/// Of a multiprocessor, which states how many registers a thread may have: 255, 255 and 168.
template <int kWidth, int kRowTiles>
constexpr int kPrefillBlocks = kWidth == 256                     ? 1
                               : kRowTiles == 2 || kWidth == 128 ? 2
                                                                 : 3;

/// kWidth >= head_dim. Softcap and bias: kRowTiles == 1. grid: query blocks, heads, sequences.
template <class Operand, int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocks<kWidth, kRowTiles>)
    prefill_kernel(const Attention a, const int min_rows) {
    using Rows = Tile<kWidth>;
    constexpr int kSteps = kWidth / 16;  // of 16 dims
    constexpr int kWarpRows = 16 * kRowTiles, kBlockRows = kWarpRows * kPrefillWarps;
    HB_DYNAMIC_SHARED(memory);
    unsigned char* const queries = memory;
    unsigned char* const keys = queries + Rows::at(kBlockRows, 0);
    unsigned char* const values = keys + Rows::at(kTileKeys, 0);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads), sequence = blockIdx.z;
    const AttentionSequence s = a.sequences[sequence];
    // The last queries see the most keys: they begin first.
    const int first = (gridDim.x - 1 - blockIdx.x) * kBlockRows, last = min(s.rows, first + kBlockRows) - 1;
    if (first > last || s.rows < min_rows) return;

    // The factor goes into the queries before their one rounding, so that scores need none.
    const float factor = a.scale * kLog2E;
#pragma unroll 2
    for (int row = thread / Rows::kLanes; row < kBlockRows; row += Rows::kPassRows)
#pragma unroll
        for (int c = 0; c < Rows::kPerRow; ++c) {
            const int chunk = thread % Rows::kLanes + c * Rows::kLanes;
            float x[8] = {};
            if (first + row <= last)
                load_eight(a.q + int64_t(s.first_row + first + row) * a.q_stride + head * a.head_dim, 8 * chunk, a.head_dim,
                           x);
#pragma unroll
            for (int e = 0; e < 8; ++e) x[e] *= factor;
            *reinterpret_cast<uint4*>(queries + Rows::at(row, chunk)) = pack_eight<Operand>(x);
        }

    // Of row tile t, this lane has rows mine + 16 t and + 8, and columns pair, pair + 1 of every 8.
    const int warp_first = first + warp * kWarpRows, mine = warp_first + lane / 4, pair = 2 * (lane % 4);
    const int warp_last = min(last, warp_first + kWarpRows - 1);
    const int warp_low = first_key(a, s, warp_first), warp_high = warp_first <= last ? last_key(a, s, warp_last) : 0;
    const int all_low = first_key(a, s, warp_last),
              all_high = last_key(a, s, warp_first);  // keys that all of its queries see
    // Where this lane's rows of the matrices of ldmatrix are.
    const unsigned char* const q_lane = queries + Rows::at(warp * kWarpRows + lane % 16, lane / 16);
    const unsigned char* const k_lane = keys + Rows::at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const unsigned char* const v_lane = values + Rows::at(lane % 16, lane / 16);
    float sums[kRowTiles][kWidth / 8][4] = {};
    float top[kRowTiles][2], total[kRowTiles][2];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) top[t][0] = top[t][1] = -INFINITY, total[t][0] = total[t][1] = 0;
    uint32_t p[kRowTiles][kTileKeys / 16][4];  // weights of a tile, from its half with keys to its half with values

    // Half 2 i of the loop multiplies with the keys of tile i, half 2 i + 1 with its values. Each loads what the next one needs: there
    // is one place that loads, because it is most of the code. Before the first tile is a half that does nothing else.
    const int first_half = first_key(a, s, first) / kTileKeys * 2;
    const int halves = (last_key(a, s, last) + kTileKeys - 1) / kTileKeys * 2;
#pragma unroll 1
    for (int half = first_half - 1; half < halves; ++half) {
        cp_async_wait<0>();
        __syncthreads();  // what this half needs is there, and nobody reads any more what it overwrites
        if (half + 1 < halves) {
            const int tile = (half + 1) / 2;
            const bool is_keys = (half + 1) % 2 == 0;
            stage<Operand, kWidth>(is_keys ? keys : values, is_keys ? a.k : a.v, kv_head, first_row(a, s, sequence, tile),
                                   s.keys - tile * kTileKeys, a.head_dim);
        }
        cp_async_commit();
        const int key0 = half / 2 * kTileKeys;
        if (half < first_half || key0 >= warp_high || key0 + kTileKeys <= warp_low) continue;

        if (half % 2 != 0) {
#pragma unroll
            for (int j = 0; j < kTileKeys / 16; ++j)
#pragma unroll
                for (int n = 0; n < kWidth / 16; ++n) {
                    uint32_t v[4];
                    ldmatrix_x4_trans(v, v_lane + Rows::at(16 * j, 2 * n));
#pragma unroll
                    for (int t = 0; t < kRowTiles; ++t) {
                        Operand::mma(sums[t][2 * n], p[t][j], v[0], v[1]);
                        Operand::mma(sums[t][2 * n + 1], p[t][j], v[2], v[3]);
                    }
                }
            continue;
        }

        float scores[kRowTiles][kTileKeys / 8][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t q[kRowTiles][4];
#pragma unroll
            for (int t = 0; t < kRowTiles; ++t) ldmatrix_x4(q[t], q_lane + Rows::at(16 * t, 2 * step));
#pragma unroll
            for (int j = 0; j < kTileKeys / 16; ++j) {
                uint32_t k[4];
                ldmatrix_x4(k, k_lane + Rows::at(16 * j, 2 * step));
#pragma unroll
                for (int t = 0; t < kRowTiles; ++t) {
                    Operand::mma(scores[t][2 * j], q[t], k[0], k[1]);
                    Operand::mma(scores[t][2 * j + 1], q[t], k[2], k[3]);
                }
            }
        }

        const bool masked = key0 < all_low || key0 + kTileKeys > all_high;
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
            float keep[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int query = mine + 16 * t + 8 * h;
                float score[kTileKeys / 4];  // of keys 8 n + pair + e at 2 n + e
#pragma unroll
                for (int i = 0; i < kTileKeys / 4; ++i) score[i] = scores[t][i / 2][2 * h + i % 2];
                if constexpr (kRowTiles == 1) vary<kTileKeys / 4>(a, s, head, min(query, last), key0 + pair, score);
                if (masked) {
                    const int visible = first_key(a, s, query) - key0 - pair, hidden = last_key(a, s, query) - key0 - pair;
#pragma unroll
                    for (int i = 0; i < kTileKeys / 4; ++i)
                        if (const int key = i / 2 * 8 + i % 2; key < visible || key >= hidden) score[i] = -INFINITY;
                }
                float peak = top[t][h];
#pragma unroll
                for (int i = 0; i < kTileKeys / 4; ++i) peak = fmaxf(peak, score[i]);
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                const float base = base_of(peak);
                keep[h] = exp2_fast(top[t][h] - base);
                float sum = 0;
#pragma unroll
                for (int n = 0; n < kTileKeys / 8; ++n) {
                    const float x = exp2_fast(score[2 * n] - base), y = exp2_fast(score[2 * n + 1] - base);
                    sum += x + y;
                    p[t][n / 2][2 * (n % 2) + h] = Operand::pack(x, y);
                }
                top[t][h] = peak;
                total[t][h] = total[t][h] * keep[h] + sum;
            }
            // After the first tiles a maximum seldom grows.
            if (__any_sync(0xffffffffu, keep[0] != 1 || keep[1] != 1))
#pragma unroll
                for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[t][n][e] *= keep[e / 2];
        }
    }

#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float all = total[t][h];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            const float inverse = all == 0 ? 0.0f : __fdividef(1.0f, all);  // no key: zeros
            const int query = mine + 16 * t + 8 * h;
            if (query > last) continue;
            float* const out = a.out + int64_t(s.first_row + query) * a.out_stride + head * a.head_dim + pair;
#pragma unroll
            for (int n = 0; n < kWidth / 8; ++n)
                if (8 * n + pair < a.head_dim)
                    *reinterpret_cast<float2*>(out + 8 * n) =
                        make_float2(sums[t][n][2 * h] * inverse, sums[t][n][2 * h + 1] * inverse);
        }
}

}  // namespace halfbyte::cuda::attention
