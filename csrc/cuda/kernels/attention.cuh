// What the attention kernels share: which keys a query sees, where a key lies, and what becomes of a score.
// Scores and their maxima are in base 2: log2(e) is part of the factor that queries are multiplied with.
#pragma once

#include "cuda/commands.h"
#include "cuda/kernels/device.h"

namespace halfbyte::cuda::attention {

constexpr float kLog2E = 1.44269504f;
constexpr int kTileKeys = kAttentionBlock;  ///< keys of a step: one entry of the block table
constexpr int kMaxHeadDim = 256;            ///< of decode() and prefill()
constexpr int kDecodeRows = 4;              ///< queries of a sequence that decode() takes

/// The three ways: decode() leaves alone sequences with more than kDecodeRows queries, the others those with less than min_rows.
/// They check nothing: run() does.
cudaError_t decode(const Attention& command, cudaStream_t stream);
/// row_tiles: 1 or 2, blocks of 64 or, with heads of 64 and 128, of 128 queries; 0: what fits.
cudaError_t prefill(const Attention& command, int32_t min_rows, int32_t row_tiles, cudaStream_t stream);
cudaError_t exact(const Attention& command, int32_t min_rows, cudaStream_t stream);

__host__ __device__ constexpr int padded_width(int head_dim) { return (head_dim + 15) / 16 * 16; }

/// Four floats of a row of f32 can be loaded at once, wherever the row begins.
inline bool loads_vectors(const KvSource& source, int head_dim) {
    return reinterpret_cast<uintptr_t>(source.data) % 16 == 0 && source.head_stride % 4 == 0 && source.row_stride % 4 == 0 &&
           source.row_stride < (int64_t(1) << 28) && head_dim % 4 == 0;
}

/// Query i of a sequence sees keys first_key .. last_key - 1.
__device__ __forceinline__ int first_key(const Attention& a, const AttentionSequence& s, int i) {
    return a.window > 0 ? max(0, s.keys - s.rows + i + 1 - a.window) : 0;
}
__device__ __forceinline__ int last_key(const Attention& a, const AttentionSequence& s, int i) {
    return a.causal != 0 || a.window > 0 ? min(s.keys, s.keys - s.rows + i + 1) : s.keys;
}

/// The row of k and v that holds the first key of a tile.
__device__ __forceinline__ int64_t first_row(const Attention& a, const AttentionSequence& s, int sequence, int tile) {
    if (a.block_table == nullptr) return int64_t(s.first_key) + int64_t(tile) * kTileKeys;
    return int64_t(a.block_table[int64_t(sequence) * a.table_stride + tile]) * kTileKeys;
}

/// The bias of query i and its head for key 0, or null.
__device__ __forceinline__ const float* bias_row(const Attention& a, int head, int i) {
    return a.bias == nullptr ? nullptr : a.bias + head * a.bias_head_stride + i * a.bias_row_stride;
}

/// tanh by ex2 and a division: off by 2^-22 or so, as it is then multiplied with the cap.
__device__ __forceinline__ float soft_cap(float score, float cap, float inverse) {
    return cap - 2 * cap * __fdividef(1.0f, 1.0f + exp2_fast(score * inverse * (2 * kLog2E)));
}

/// exp2(score - base), and base is the maximum: 0 while no key was visible, so that -inf - base is no NaN. A NaN among the scores
/// leaves no trace in a maximum, but in the weights.
__device__ __forceinline__ float base_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, bits));
    return value;
}

}  // namespace halfbyte::cuda::attention
