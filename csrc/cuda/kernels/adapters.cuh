// The low-rank products of adapters, as templates of their tiles.
#pragma once

#include "cuda/commands.h"
#include "cuda/kernels/block.cuh"

namespace halfbyte::cuda {

struct HalfElement {
    using Type = __half;
    static __device__ __forceinline__ float to_float(Type v) { return __half2float(v); }
};
struct Bf16Element {
    using Type = __nv_bfloat16;
    static __device__ __forceinline__ float to_float(Type v) { return __bfloat162float(v); }
};
struct FloatElement {
    using Type = float;
    static __device__ __forceinline__ float to_float(Type v) { return v; }
};

/// Elements c .. c + 3 of a row of a matrix; those from `cols` on are 0. kVector: all four exist and are aligned.
template <class E, bool kVector>
__device__ __forceinline__ float4 matrix4(const typename E::Type* row, int c, int cols) {
    if constexpr (!kVector) {
        return make_float4(c < cols ? E::to_float(row[c]) : 0.0f, c + 1 < cols ? E::to_float(row[c + 1]) : 0.0f,
                           c + 2 < cols ? E::to_float(row[c + 2]) : 0.0f, c + 3 < cols ? E::to_float(row[c + 3]) : 0.0f);
    } else if constexpr (sizeof(typename E::Type) == 4) {
        return *reinterpret_cast<const float4*>(row + c);
    } else {
        const uint2 bits = *reinterpret_cast<const uint2*>(row + c);
        if constexpr (std::is_same_v<E, Bf16Element>) {  // a bf16 is the upper half of a float
            return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
                               __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u));
        } else {
            const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
            const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
            return make_float4(low.x, low.y, high.x, high.y);
        }
    }
}

/// Whether rows of `cols` elements from `pointer` on can be read four elements at a time.
template <class E>
__device__ __forceinline__ bool matrix_aligned(const void* pointer, int cols) {
    return cols % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(typename E::Type)) == 0;
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

constexpr int kShrinkWarps = 8;

/// Warps of a block: kSplit side by side along `in`, the rest over tiles of kRows rows x kRanks rows of A.
template <int kTileRowsOfX, int kTileRanks, int kAlongIn, int kAlongRows, int kAlongRanks>
struct ShrinkTile {
    static constexpr int kRows = kTileRowsOfX, kRanks = kTileRanks, kSplit = kAlongIn;
    static constexpr int kRowWarps = kAlongRows, kRankWarps = kAlongRanks;
    static constexpr int kUnroll = kTileRowsOfX <= 2 ? 4 : 1;  // loads on their way where few of them would be
    static constexpr int kBlockRows = kRows * kRowWarps, kBlockRanks = kRanks * kRankWarps;
    static_assert(kSplit * kRowWarps * kRankWarps == kShrinkWarps && kRows * kRanks <= 32);
};

/// sum[r][k] += x row r . A row k over this warp's columns; lanes take four columns each.
template <class T, class E, bool kVector>
__device__ __forceinline__ void shrink_sums(const float* const (&x)[T::kRows], const typename E::Type* a, int ranks, int in,
                                            int first, float (&sum)[T::kRows * T::kRanks]) {
#pragma unroll T::kUnroll
    for (int c = first; c < in; c += 128 * T::kSplit) {
        float4 of_x[T::kRows];
#pragma unroll
        for (int r = 0; r < T::kRows; ++r) of_x[r] = load4<kVector>(x[r], c, in);
#pragma unroll
        for (int k = 0; k < T::kRanks; ++k) {
            const int row = k < ranks ? k : ranks - 1;  // sums of rows that there are not are not kept
            const float4 of_a = matrix4<E, kVector>(a + int64_t(row) * in, c, in);
#pragma unroll
            for (int r = 0; r < T::kRows; ++r) sum[r * T::kRanks + k] = dot4(of_x[r], of_a, sum[r * T::kRanks + k]);
        }
    }
}

template <class T, class E>
__device__ __forceinline__ void shrink_sums(const Adapt& command, const AdapterEntry& entry,
                                            const float* const (&x)[T::kRows], int first_rank, int ranks, int first,
                                            float (&sum)[T::kRows * T::kRanks]) {
    const auto* a = static_cast<const typename E::Type*>(entry.a) + int64_t(first_rank) * command.in;
    const bool x_aligned = reinterpret_cast<uintptr_t>(command.x) % 16 == 0 && command.x_stride % 4 == 0;
    if (x_aligned && matrix_aligned<E>(entry.a, command.in))
        shrink_sums<T, E, true>(x, a, ranks, command.in, first, sum);
    else
        shrink_sums<T, E, false>(x, a, ranks, command.in, first, sum);
}

template <int kBits, int kCount>
__device__ __forceinline__ void halve(float (&value)[kCount]) {
    if constexpr (kBits > 0) {
        const bool upper = (threadIdx.x & kBits) != 0;
#pragma unroll
        for (int i = 0; i < kBits; ++i) {
            const float sent = upper ? value[i] : value[i + kBits], kept = upper ? value[i + kBits] : value[i];
            value[i] = kept + __shfl_xor_sync(0xffffffffu, sent, kBits);
        }
        halve<kBits / 2>(value);
    }
}

/// Sums of kCount values over the lanes of a warp in 31 shuffles for 32 of them: in each round a lane keeps half of what it has.
/// Lane l comes to hold value l % kCount, in `value[0]`.
template <int kCount>
__device__ __forceinline__ void transposed_sum(float (&value)[kCount]) {
#pragma unroll
    for (int bits = 16; bits >= kCount; bits /= 2)
#pragma unroll
        for (int i = 0; i < kCount; ++i) value[i] += __shfl_xor_sync(0xffffffffu, value[i], bits);
    halve<kCount / 2>(value);
}

/// low[pair][k] = scale * A x. A is read once for kBlockRows rows of a segment, straight into registers: lanes take neighbouring
/// columns, so that every load is a full line, and nothing is staged. Bound by memory (A) where a segment has few rows: then tiles
/// are narrow, so that rank / kBlockRanks blocks share A, and all warps split `in`; by multiply-adds where rows are many, each
/// float4 of x and A in registers being used kRanks and kRows times. Warps that split `in` are added in their order.
/// grid: [segments, row tiles, rank tiles]
template <class T>
__global__ void __launch_bounds__(32 * kShrinkWarps, 2) shrink_kernel(const __grid_constant__ Adapt command) {
    constexpr int kValues = T::kRows * T::kRanks;
    HB_SHARED_ARRAY(float, room, [kShrinkWarps][kValues]);
    const int first = command.segment_first[blockIdx.x] + int(blockIdx.y) * T::kBlockRows;
    const int end = command.segment_end[blockIdx.x];
    if (first >= end) return;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int split = warp % T::kSplit, tile = warp / T::kSplit;
    const int position = first + tile % T::kRowWarps * T::kRows;
    const int first_rank = int(blockIdx.z) * T::kBlockRanks + tile / T::kRowWarps * T::kRanks;
    const int rows = min(T::kRows, end - position);  // may be negative
    const float* x[T::kRows];
#pragma unroll
    for (int r = 0; r < T::kRows; ++r)
        x[r] = command.x + int64_t(command.rows[min(position + r, end - 1)]) * command.x_stride;

    const int entries = command.begin[first + 1] - command.begin[first];
    for (int e = 0; e < entries; ++e) {
        const AdapterEntry& entry = command.entries[command.pair_entry[command.begin[first] + e]];
        const int ranks = min(T::kRanks, entry.rank - first_rank);
        float sum[kValues];
#pragma unroll
        for (int i = 0; i < kValues; ++i) sum[i] = 0;
        if (ranks > 0 && rows > 0) {
            const int column = 4 * (32 * split + lane);
            if (entry.a_element == Element::f32)
                shrink_sums<T, FloatElement>(command, entry, x, first_rank, ranks, column, sum);
            else if (entry.a_element == Element::f16)
                shrink_sums<T, HalfElement>(command, entry, x, first_rank, ranks, column, sum);
            else
                shrink_sums<T, Bf16Element>(command, entry, x, first_rank, ranks, column, sum);
        }
        transposed_sum(sum);
        if (T::kSplit > 1) {
            __syncthreads();  // what the entry before left has been read
            if (lane < kValues) room[warp][lane] = sum[0];
            __syncthreads();
        }
        const int r = lane / T::kRanks, k = lane % T::kRanks;
        if (split != 0 || lane >= kValues || r >= rows || k >= ranks) continue;
        float total = sum[0];
        if (T::kSplit > 1)
            for (int s = 1; s < T::kSplit; ++s) total += room[warp + s][lane];
        const int64_t pair = command.begin[position + r] + e;
        command.low[pair * command.max_rank + entry.first + first_rank + k] = entry.scale * total;
    }
}

constexpr int kExpandCols = 64;   // columns of y that a block has, one a thread
constexpr int kExpandRanks = 32;  // of `low` in shared memory at a time

/// sum[r] += low row r . B row of this thread's column, over ranks first .. first + kExpandRanks - 1.
template <class E, bool kVector, int kRows>
__device__ __forceinline__ void expand_sums(const typename E::Type* b, const float (&low)[kRows][kExpandRanks], int first,
                                            int rank, float (&sum)[kRows]) {
#pragma unroll(kRows > 4 ? 1 : 4)
    for (int k = 0; k < kExpandRanks; k += 4) {
        if (first + k >= rank) break;
        const float4 of_b = matrix4<E, kVector>(b, first + k, rank);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] = dot4(*reinterpret_cast<const float4*>(&low[r][k]), of_b, sum[r]);
    }
}

template <class E, int kRows>
__device__ __forceinline__ void expand_sums(const AdapterEntry& entry, int column, const float (&low)[kRows][kExpandRanks],
                                            int first, float (&sum)[kRows]) {
    const auto* b = static_cast<const typename E::Type*>(entry.b) + int64_t(column) * entry.rank;
    if (matrix_aligned<E>(entry.b, entry.rank))
        expand_sums<E, true, kRows>(b, low, first, entry.rank, sum);
    else
        expand_sums<E, false, kRows>(b, low, first, entry.rank, sum);
}

/// y = pivot + gain * (y + B low - pivot) + weight * shift for every entry in turn; y stays in registers between them. Bound by
/// memory: B once for kRows rows of a segment, y once in and once out. A thread reads the row of B of its column in vectors, whose
/// lines its neighbours share through L1; `low` comes from shared memory to all lanes at once.
/// grid: [segments, row tiles, columns / kExpandCols]
template <int kRows>
__global__ void __launch_bounds__(kExpandCols, 8) expand_kernel(const __grid_constant__ Adapt command) {
    HB_SHARED_ARRAY(float, low, [kRows][kExpandRanks]);
    const int first = command.segment_first[blockIdx.x] + int(blockIdx.y) * kRows;
    const int end = command.segment_end[blockIdx.x];
    if (first >= end) return;
    const int rows = min(kRows, end - first);
    const int column = int(blockIdx.z) * kExpandCols + int(threadIdx.x);
    const bool exists = column < command.out;
    float y[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        y[r] = exists && r < rows ? command.y[int64_t(command.rows[first + r]) * command.y_stride + column] : 0.0f;
    const float bias = exists && command.bias != nullptr ? command.bias[column] : 0.0f;

    const int entries = command.begin[first + 1] - command.begin[first];
    for (int e = 0; e < entries; ++e) {
        const AdapterEntry& entry = command.entries[command.pair_entry[command.begin[first] + e]];
        const int rank = entry.rank;
        float sum[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] = 0;
        for (int k = 0; k < rank; k += kExpandRanks) {
            __syncthreads();
            for (int i = int(threadIdx.x); i < kRows * kExpandRanks; i += kExpandCols) {
                const int r = i / kExpandRanks, c = k + i % kExpandRanks;
                const bool valid = r < rows && c < rank;
                low[r][i % kExpandRanks] =
                    valid ? command.low[int64_t(command.begin[first + r] + e) * command.max_rank + entry.first + c] : 0.0f;
            }
            __syncthreads();
            if (!exists) continue;
            if (entry.b_element == Element::f32)
                expand_sums<FloatElement, kRows>(entry, column, low, k, sum);
            else if (entry.b_element == Element::f16)
                expand_sums<HalfElement, kRows>(entry, column, low, k, sum);
            else
                expand_sums<Bf16Element, kRows>(entry, column, low, k, sum);
        }
        if (!exists) continue;
        const float pivot = entry.pivot_is_bias != 0 ? bias : 0.0f;
        const float gain = entry.gain != nullptr ? entry.gain[column] : 1.0f;
        const float shift = entry.shift != nullptr ? entry.weight * entry.shift[column] : 0.0f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            y[r] += sum[r];
            if (entry.gain != nullptr) y[r] = pivot + gain * (y[r] - pivot);
            if (entry.shift != nullptr) y[r] += shift;
        }
    }
    if (!exists) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
        if (r < rows) command.y[int64_t(command.rows[first + r]) * command.y_stride + column] = y[r];
}

}  // namespace halfbyte::cuda
