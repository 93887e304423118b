// What the row kernels share: sums over a block, four floats at a time.
#pragma once

#include "cuda/kernels/device.h"

namespace halfbyte::cuda {

constexpr int kMaxWarps = 32;

/// The sum over the block in every thread, a tree of a fixed shape. `room` must not be in use; a barrier before its next use is the
/// caller's.
template <class T>
__device__ __forceinline__ T block_sum(T value, T (&room)[kMaxWarps]) {
    const int lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
    value = warp_sum(value);
    if (lane == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    return warp_sum(lane < warps ? room[lane] : T(0));
}

/// Elements c .. c + 3 of a row of `cols`; those behind its end are 0.
template <bool kVector>
__device__ __forceinline__ float4 load4(const float* row, int c, int cols) {
    if constexpr (kVector) {
        if (c < cols) return *reinterpret_cast<const float4*>(row + c);
        return make_float4(0, 0, 0, 0);
    } else {
        return make_float4(c < cols ? row[c] : 0.0f, c + 1 < cols ? row[c + 1] : 0.0f, c + 2 < cols ? row[c + 2] : 0.0f,
                           c + 3 < cols ? row[c + 3] : 0.0f);
    }
}

template <bool kVector>
__device__ __forceinline__ void store4(float* row, int c, int cols, float4 value) {
    if constexpr (kVector) {
        if (c < cols) *reinterpret_cast<float4*>(row + c) = value;
    } else {
        if (c < cols) row[c] = value.x;
        if (c + 1 < cols) row[c + 1] = value.y;
        if (c + 2 < cols) row[c + 2] = value.z;
        if (c + 3 < cols) row[c + 3] = value.w;
    }
}

/// Whether rows that begin at `pointer` and are `stride` floats apart can be read as float4; null can.
inline bool aligned4(const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && (pointer == nullptr || stride % 4 == 0);
}

inline unsigned blocks_of(int64_t count, int64_t per_block) { return unsigned((count + per_block - 1) / per_block); }

}  // namespace halfbyte::cuda
