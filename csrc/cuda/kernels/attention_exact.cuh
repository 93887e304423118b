// Attention in float32 throughout, any head_dim, any source: the reference on the device, for Precision::float32 and for heads that
// the others cannot do. Blocks of 16 queries x tiles of 64 keys, scores in shared memory; each output is the sum of its products in
// the order of the keys. Bound by shared memory and by loads of single elements: about a load for every 8 products.
#pragma once

#include "cuda/kernels/attention.cuh"

namespace halfbyte::cuda::attention {

constexpr int kExactThreads = 128, kExactQueries = 16;
constexpr int kExactDims = 32;      ///< dims of queries and keys in shared memory at a time
constexpr int kExactColumns = 256;  ///< columns of the output that a pass over the keys makes

__device__ __forceinline__ float element(const KvSource& source, int64_t head, int64_t row, int column) {
    const int64_t at = head * source.head_stride + row * source.row_stride + column;
    switch (source.element) {
        case Element::f32: return static_cast<const float*>(source.data)[at];
        case Element::f16: return __half2float(static_cast<const __half*>(source.data)[at]);
        case Element::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(source.data)[at]);
        default: return float(static_cast<const int8_t*>(source.data)[at]) * source.scales[head * source.scale_stride + row];
    }
}

__global__ void __launch_bounds__(kExactThreads) exact_kernel(const Attention a, const int min_rows) {
    HB_SHARED_ARRAY(float, queries, [kExactDims][kExactQueries]);
    HB_SHARED_ARRAY(float, keys, [kTileKeys][kExactDims + 1]);
    HB_SHARED_ARRAY(float, weights, [kTileKeys][kExactQueries + 4]);  // scores, then their weights
    HB_SHARED_ARRAY(float, shrink, [kExactQueries]);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int place = thread % 64, half = 8 * (thread / 64);  // of 64 keys or columns, and the first of 8 queries
    const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads), sequence = blockIdx.z;
    const AttentionSequence s = a.sequences[sequence];
    const int first = blockIdx.x * kExactQueries, last = min(s.rows, first + kExactQueries) - 1;
    if (first > last || s.rows < min_rows) return;
    const int low = first_key(a, s, first), high = last_key(a, s, last);
    const float factor = a.scale * kLog2E, cap = a.softcap * kLog2E;

    for (int pass = 0; pass < a.head_dim; pass += kExactColumns) {
        float sums[8][4] = {};
        float top[4], total[4];  // of queries 4 * warp + i
#pragma unroll
        for (int i = 0; i < 4; ++i) top[i] = -INFINITY, total[i] = 0;

        for (int tile = low / kTileKeys; tile * kTileKeys < high; ++tile) {
            const int key0 = tile * kTileKeys, from = max(low - key0, 0), to = min(high - key0, kTileKeys);
            const int64_t row0 = first_row(a, s, sequence, tile);
            float scores[8] = {};
            for (int d0 = 0; d0 < a.head_dim; d0 += kExactDims) {
                __syncthreads();
                for (int i = warp; i < kExactQueries; i += kExactThreads / 32)
                    queries[lane][i] =
                        first + i <= last && d0 + lane < a.head_dim
                            ? a.q[int64_t(s.first_row + first + i) * a.q_stride + head * a.head_dim + d0 + lane]
                            : 0.0f;
                for (int i = warp; i < kTileKeys; i += kExactThreads / 32)
                    keys[i][lane] =
                        i >= from && i < to && d0 + lane < a.head_dim ? element(a.k, kv_head, row0 + i, d0 + lane) : 0.0f;
                __syncthreads();
#pragma unroll 8
                for (int d = 0; d < kExactDims; ++d) {
                    const float k = keys[place][d];
#pragma unroll
                    for (int j = 0; j < 8; ++j) scores[j] = fmaf(queries[d][half + j], k, scores[j]);
                }
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) weights[place][half + j] = scores[j];
            __syncthreads();

#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int query = 4 * warp + i, index = min(first + query, last);
                const int begin = first_key(a, s, index) - key0, end = last_key(a, s, index) - key0;
                const float* bias = bias_row(a, head, index);
                float score[2], peak = top[i];
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const int key = lane + 32 * j;
                    score[j] = weights[key][query] * factor;
                    if (cap > 0) score[j] = cap * tanhf(score[j] / cap);
                    const bool visible = key >= begin && key < end;
                    if (visible && bias != nullptr) score[j] += bias[key0 + key] * kLog2E;
                    if (!visible) score[j] = -INFINITY;
                    peak = fmaxf(peak, score[j]);
                }
                peak = warp_max(peak);
                const float base = base_of(peak), keep = exp2f(top[i] - base);
                float sum = 0;
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const float weight = exp2f(score[j] - base);
                    weights[lane + 32 * j][query] = weight;
                    sum += weight;
                }
                total[i] = total[i] * keep + warp_sum(sum);
                top[i] = peak;
                if (lane == 0) shrink[query] = keep;
            }
            __syncthreads();

#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int c = 0; c < 4; ++c) sums[j][c] *= shrink[half + j];
            for (int key = from; key < to; ++key) {
                float value[4];
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    const int column = pass + place + 64 * c;
                    value[c] = column < a.head_dim ? element(a.v, kv_head, row0 + key, column) : 0.0f;
                }
#pragma unroll
                for (int j = 0; j < 8; ++j)
#pragma unroll
                    for (int c = 0; c < 4; ++c) sums[j][c] = fmaf(weights[key][half + j], value[c], sums[j][c]);
            }
        }

        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (lane == 0) shrink[4 * warp + i] = total[i] == 0 ? 0.0f : 1.0f / total[i];  // no key: zeros
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int column = pass + place + 64 * c;
                if (first + half + j <= last && column < a.head_dim)
                    a.out[int64_t(s.first_row + first + half + j) * a.out_stride + head * a.head_dim + column] =
                        sums[j][c] * shrink[half + j];
            }
    }
}

}  // namespace halfbyte::cuda::attention
