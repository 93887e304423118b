// New keys or values into a cache. A warp brings one head of one token: it reads and writes once, coalesced, so that memory bounds
// it, or for few tokens the launch.
#pragma once

#include "cuda/commands.h"
#include "cuda/kernels/device.h"

namespace halfbyte::cuda::store {

constexpr int kThreads = 128;

__device__ __forceinline__ uint32_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
__device__ __forceinline__ uint32_t bf16_bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
__device__ __forceinline__ uint32_t byte_bits(float value) { return uint32_t(__float2int_rn(value)) & 0xffu; }

/// Four elements of a row at `column` < width; those from head_dim on are zero.
template <bool kVectors>
__device__ __forceinline__ float4 four(const float* row, int column, int head_dim) {
    if constexpr (kVectors)
        return column < head_dim ? __ldg(reinterpret_cast<const float4*>(row + column)) : make_float4(0, 0, 0, 0);
    return make_float4(column < head_dim ? row[column] : 0.0f, column + 1 < head_dim ? row[column + 1] : 0.0f,
                       column + 2 < head_dim ? row[column + 2] : 0.0f, column + 3 < head_dim ? row[column + 3] : 0.0f);
}

template <Element kElement, bool kVectors>
__global__ void __launch_bounds__(kThreads) store_kv_kernel(const StoreKv c) {
    const int lane = threadIdx.x % 32;
    const int64_t pair = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
    if (pair >= int64_t(c.tokens) * c.heads) return;
    const int64_t token = pair / c.heads, head = pair % c.heads;
    const int64_t target = c.target[token];
    if (target < 0 || target >= c.rows) return;  // the same for all lanes
    const int width = (c.head_dim + 15) / 16 * 16;
    const float* from = c.x + token * c.x_stride + head * c.head_dim;
    const int64_t row = head * c.rows + target;

    float inverse = 1;
    if constexpr (kElement == Element::i8) {
        // As on the CPU: a NaN or an infinity makes the scale NaN, so that the row shows it.
        float most = 0, bad = 0;
        for (int column = 4 * lane; column < width; column += 128) {
            const float4 x = four<kVectors>(from, column, c.head_dim);
            most = fmaxf(fmaxf(most, fmaxf(fabsf(x.x), fabsf(x.y))), fmaxf(fabsf(x.z), fabsf(x.w)));
            bad += x.x * 0.0f + x.y * 0.0f + x.z * 0.0f + x.w * 0.0f;
        }
#pragma unroll
        for (int bits = 16; bits > 0; bits /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, bits));
        bad = warp_sum(bad);
        inverse = bad == 0 && most > 1e-30f ? 127.0f / most : 0.0f;
        if (lane == 0) c.scales[row] = most / 127.0f + bad;
    }
    for (int column = 4 * lane; column < width; column += 128) {
        const float4 x = four<kVectors>(from, column, c.head_dim);
        const int64_t at = row * width + column;
        if constexpr (kElement == Element::f32)
            *reinterpret_cast<float4*>(static_cast<float*>(c.data) + at) = x;
        else if constexpr (kElement == Element::f16)
            *reinterpret_cast<uint2*>(static_cast<uint16_t*>(c.data) + at) =
                make_uint2(half_bits(x.x) | half_bits(x.y) << 16, half_bits(x.z) | half_bits(x.w) << 16);
        else if constexpr (kElement == Element::bf16)
            *reinterpret_cast<uint2*>(static_cast<uint16_t*>(c.data) + at) =
                make_uint2(bf16_bits(x.x) | bf16_bits(x.y) << 16, bf16_bits(x.z) | bf16_bits(x.w) << 16);
        else
            *reinterpret_cast<uint32_t*>(static_cast<int8_t*>(c.data) + at) =
                byte_bits(x.x * inverse) | byte_bits(x.y * inverse) << 8 | byte_bits(x.z * inverse) << 16 |
                byte_bits(x.w * inverse) << 24;
    }
}

}  // namespace halfbyte::cuda::store
