// Attention of many queries on tensor cores (FlashAttention-2's order of work, arXiv:2307.08691): 16-bit operands, float32 sums,
// scores and softmax; probabilities are rounded once, to the operands' type. A block has 4 warps of 16 * kRowTiles queries of one
// head and takes keys in tiles of 64. Keys are loaded while the previous tile's values are multiplied, values while the scores are.
// Bound by the tensor cores where a warp has 32 queries. With 16, keys and values leave shared memory as often as a multiplication
// of their size takes, and both pipes are equally busy.
#pragma once

#include "cuda/kernels/attention.cuh"

namespace halfbyte::cuda::attention {

constexpr int kPrefillThreads = 128, kPrefillWarps = kPrefillThreads / 32;

struct OperandF16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __half2 two = __floats2half2_rn(low, high);
        return reinterpret_cast<const uint32_t&>(two);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
        const uint32_t y[2] = {y0, y1};
        mma_f16(d, x, y);
    }
};
struct OperandBf16 {
    static __device__ __forceinline__ uint32_t pack(float low, float high) {
        const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
        return reinterpret_cast<const uint32_t&>(two);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&x)[4], uint32_t y0, uint32_t y1) {
        const uint32_t y[2] = {y0, y1};
        mma_bf16(d, x, y);
    }
};

/// Rows of kWidth 16-bit elements in shared memory, in chunks of 8. The 8 rows that ldmatrix reads at once lie in different banks:
/// chunks are exchanged within each 8, or, where a row has no multiple of 8, a row has an odd number of them.
template <int kWidth>
struct Tile {
    static constexpr int kChunks = kWidth / 8;
    static constexpr int kRowChunks = kChunks % 8 == 0 ? kChunks : kChunks + 1;
    static __host__ __device__ constexpr int bytes(int rows) { return rows * kRowChunks * 16; }
    static __device__ __forceinline__ uint4* at(unsigned char* tile, int row, int chunk) {
        return reinterpret_cast<uint4*>(tile) + row * kRowChunks + (kChunks % 8 == 0 ? chunk ^ (row & 7) : chunk);
    }
};

template <int kWidth, int kRowTiles>
constexpr int prefill_shared_bytes() {
    return Tile<kWidth>::bytes(2 * kTileKeys + 16 * kRowTiles * kPrefillWarps);
}

/// Elements [column, column + 8) of a row of floats; zeros from head_dim on.
__device__ __forceinline__ void load_eight(const float* row, int column, int head_dim, bool vectors, float (&out)[8]) {
    if (vectors) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool there = column + 4 * i < head_dim;
            const float4 x = there ? __ldg(reinterpret_cast<const float4*>(row + column + 4 * i)) : make_float4(0, 0, 0, 0);
            out[4 * i] = x.x, out[4 * i + 1] = x.y, out[4 * i + 2] = x.z, out[4 * i + 3] = x.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = column + i < head_dim ? row[column + i] : 0.0f;
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
__device__ __forceinline__ void stage(unsigned char* tile, const KvSource& source, bool vectors, int head, int64_t row0,
                                      int count, int head_dim) {
    constexpr int kChunks = Tile<kWidth>::kChunks, kSteps = kTileKeys * kChunks / kPrefillThreads;
    const int64_t base = head * source.head_stride + row0 * source.row_stride;
    const int width = padded_width(head_dim);
    if (source.element == Element::f16 || source.element == Element::bf16) {
        const auto* from = static_cast<const uint16_t*>(source.data) + base;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            const int at = threadIdx.x + i * kPrefillThreads, row = at / kChunks, chunk = at % kChunks;
            const bool there = row < count && 8 * chunk < width;
            cp_async_16(Tile<kWidth>::at(tile, row, chunk), there ? from + row * source.row_stride + 8 * chunk : from,
                        there);
        }
    } else if (source.element == Element::i8) {
        const auto* from = static_cast<const int8_t*>(source.data) + base;
        const float* scales = source.scales + head * source.scale_stride + row0;
#pragma unroll 4
        for (int i = 0; i < kSteps; ++i) {
            const int at = threadIdx.x + i * kPrefillThreads, row = at / kChunks, chunk = at % kChunks;
            float x[8] = {};
            if (row < count && 8 * chunk < width) {
                const uint2 raw = __ldg(reinterpret_cast<const uint2*>(from + row * source.row_stride) + chunk);
                const float scale = scales[row];
#pragma unroll
                for (int e = 0; e < 8; ++e) x[e] = signed_byte(e < 4 ? raw.x : raw.y, e % 4) * scale;
            }
            *Tile<kWidth>::at(tile, row, chunk) = pack_eight<Operand>(x);
        }
    } else {
        const auto* from = static_cast<const float*>(source.data) + base;
#pragma unroll 4
        for (int i = 0; i < kSteps; ++i) {
            const int at = threadIdx.x + i * kPrefillThreads, row = at / kChunks, chunk = at % kChunks;
            float x[8] = {};
            if (row < count) load_eight(from + row * source.row_stride, 8 * chunk, head_dim, vectors, x);
            *Tile<kWidth>::at(tile, row, chunk) = pack_eight<Operand>(x);
        }
    }
}

struct PrefillFlags {
    bool q_vectors, k_vectors, v_vectors, out_pairs;
    int min_rows;
};

/// kWidth >= head_dim. grid: query blocks, heads, sequences.
template <class Operand, int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kPrefillThreads, kWidth* kRowTiles <= 128   ? 3
                                                   : kWidth * kRowTiles < 256 ? 2
                                                                              : 1)
    prefill_kernel(const Attention a, const PrefillFlags flags) {
    using Rows = Tile<kWidth>;
    constexpr int kSteps = kWidth / 16;  // of 16 dims
    constexpr int kWarpRows = 16 * kRowTiles, kBlockRows = kWarpRows * kPrefillWarps;
    HB_DYNAMIC_SHARED(memory);
    unsigned char* const queries = memory;
    unsigned char* const keys = queries + Rows::bytes(kBlockRows);
    unsigned char* const values = keys + Rows::bytes(kTileKeys);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads), sequence = blockIdx.z;
    const AttentionSequence s = a.sequences[sequence];
    // The last queries see the most keys: they begin first.
    const int first = (gridDim.x - 1 - blockIdx.x) * kBlockRows, last = min(s.rows, first + kBlockRows) - 1;
    if (first > last || s.rows < flags.min_rows) return;
    const int low = first_key(a, s, first), high = last_key(a, s, last);

    // The factor goes into the queries before their one rounding, so that scores need none.
    const float factor = a.scale * kLog2E;
#pragma unroll 4
    for (int i = 0; i < kBlockRows * Rows::kChunks / kPrefillThreads; ++i) {
        const int at = thread + i * kPrefillThreads, row = at / Rows::kChunks, chunk = at % Rows::kChunks;
        float x[8] = {};
        if (first + row <= last)
            load_eight(a.q + int64_t(s.first_row + first + row) * a.q_stride + head * a.head_dim, 8 * chunk, a.head_dim,
                       flags.q_vectors, x);
#pragma unroll
        for (int e = 0; e < 8; ++e) x[e] *= factor;
        *Rows::at(queries, row, chunk) = pack_eight<Operand>(x);
    }

    // Of row tile t, this lane has rows mine + 16 t and + 8, and columns pair, pair + 1 of every 8.
    const int warp_first = first + warp * kWarpRows, mine = warp_first + lane / 4, pair = 2 * (lane % 4);
    const int warp_last = min(last, warp_first + kWarpRows - 1);
    const int warp_low = first_key(a, s, warp_first), warp_high = warp_first <= last ? last_key(a, s, warp_last) : 0;
    const int all_low = first_key(a, s, warp_last),
              all_high = last_key(a, s, warp_first);  // keys that all of its queries see
    const float cap = a.softcap * kLog2E, inverse_cap = cap > 0 ? 1.0f / cap : 0.0f;
    float sums[kRowTiles][kWidth / 8][4] = {};
    float top[kRowTiles][2], total[kRowTiles][2];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) top[t][0] = top[t][1] = -INFINITY, total[t][0] = total[t][1] = 0;

    const int end = (high + kTileKeys - 1) / kTileKeys;
    int tile = low / kTileKeys;
    if (tile < end)
        stage<Operand, kWidth>(keys, a.k, flags.k_vectors, kv_head, first_row(a, s, sequence, tile),
                               s.keys - tile * kTileKeys, a.head_dim);
    cp_async_commit();
    for (; tile < end; ++tile) {
        const int key0 = tile * kTileKeys;
        const bool active = key0 < warp_high && key0 + kTileKeys > warp_low;
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, and nobody reads the previous tile's values any more
        stage<Operand, kWidth>(values, a.v, flags.v_vectors, kv_head, first_row(a, s, sequence, tile), s.keys - key0,
                               a.head_dim);
        cp_async_commit();

        uint32_t p[kRowTiles][kTileKeys / 16][4];
        if (active) {
            float scores[kRowTiles][kTileKeys / 8][4] = {};
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                uint32_t q[kRowTiles][4];
#pragma unroll
                for (int t = 0; t < kRowTiles; ++t)
                    ldmatrix_x4(q[t], Rows::at(queries, warp * kWarpRows + 16 * t + lane % 16, 2 * step + lane / 16));
#pragma unroll
                for (int j = 0; j < kTileKeys / 16; ++j) {
                    uint32_t k[4];
                    ldmatrix_x4(k, Rows::at(keys, 16 * j + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
#pragma unroll
                    for (int t = 0; t < kRowTiles; ++t) {
                        Operand::mma(scores[t][2 * j], q[t], k[0], k[1]);
                        Operand::mma(scores[t][2 * j + 1], q[t], k[2], k[3]);
                    }
                }
            }

            const bool masked = key0 < all_low || key0 + kTileKeys > all_high;
#pragma unroll
            for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int query = mine + 16 * t + 8 * h;
                    if (cap > 0) {
#pragma unroll
                        for (int n = 0; n < kTileKeys / 8; ++n)
#pragma unroll
                            for (int e = 2 * h; e < 2 * h + 2; ++e)
                                scores[t][n][e] = soft_cap(scores[t][n][e], cap, inverse_cap);
                    }
                    if (a.bias != nullptr && query <= last) {
                        const float* bias = bias_row(a, head, query) + key0;
#pragma unroll
                        for (int n = 0; n < kTileKeys / 8; ++n)
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                const int key = 8 * n + pair + e;
                                if (key0 + key < s.keys) scores[t][n][2 * h + e] += bias[key] * kLog2E;
                            }
                    }
                    if (masked) {
                        const int visible = first_key(a, s, query) - key0, hidden = last_key(a, s, query) - key0;
#pragma unroll
                        for (int n = 0; n < kTileKeys / 8; ++n)
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                const int key = 8 * n + pair + e;
                                if (key < visible || key >= hidden) scores[t][n][2 * h + e] = -INFINITY;
                            }
                    }
                    float peak = top[t][h];
#pragma unroll
                    for (int n = 0; n < kTileKeys / 8; ++n)
                        peak = fmaxf(peak, fmaxf(scores[t][n][2 * h], scores[t][n][2 * h + 1]));
                    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
                    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
                    const float base = base_of(peak), keep = exp2_fast(top[t][h] - base);
                    float sum = 0;
#pragma unroll
                    for (int n = 0; n < kTileKeys / 8; ++n) {
                        const float x = exp2_fast(scores[t][n][2 * h] - base),
                                    y = exp2_fast(scores[t][n][2 * h + 1] - base);
                        sum += x + y;
                        p[t][n / 2][2 * (n % 2) + h] = Operand::pack(x, y);
                    }
                    top[t][h] = peak;
                    total[t][h] = total[t][h] * keep + sum;
#pragma unroll
                    for (int n = 0; n < kWidth / 8; ++n) sums[t][n][2 * h] *= keep, sums[t][n][2 * h + 1] *= keep;
                }
        }

        cp_async_wait<0>();
        __syncthreads();  // the values are there, and nobody reads the keys any more
        if (tile + 1 < end)
            stage<Operand, kWidth>(keys, a.k, flags.k_vectors, kv_head, first_row(a, s, sequence, tile + 1),
                                   s.keys - key0 - kTileKeys, a.head_dim);
        cp_async_commit();
        if (!active) continue;
#pragma unroll
        for (int j = 0; j < kTileKeys / 16; ++j)
#pragma unroll
            for (int n = 0; n < kWidth / 16; ++n) {
                uint32_t v[4];
                ldmatrix_x4_trans(v, Rows::at(values, 16 * j + lane % 16, 2 * n + lane / 16));
#pragma unroll
                for (int t = 0; t < kRowTiles; ++t) {
                    Operand::mma(sums[t][2 * n], p[t][j], v[0], v[1]);
                    Operand::mma(sums[t][2 * n + 1], p[t][j], v[2], v[3]);
                }
            }
    }

#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float all = total[t][h];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            const float inverse = all == 0 ? 0.0f : 1.0f / all;  // no key: zeros
            const int query = mine + 16 * t + 8 * h;
            if (query > last) continue;
            float* const out = a.out + int64_t(s.first_row + query) * a.out_stride + head * a.head_dim;
#pragma unroll
            for (int n = 0; n < kWidth / 8; ++n) {
                const int column = 8 * n + pair;
                const float x = sums[t][n][2 * h] * inverse, y = sums[t][n][2 * h + 1] * inverse;
                if (flags.out_pairs) {
                    if (column < a.head_dim) *reinterpret_cast<float2*>(out + column) = make_float2(x, y);
                } else {
                    if (column < a.head_dim) out[column] = x;
                    if (column + 1 < a.head_dim) out[column + 1] = y;
                }
            }
        }
    cp_async_wait<0>();
}

}  // namespace halfbyte::cuda::attention
