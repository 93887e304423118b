// Rows on their way into a product: norms, activations, gates, conversion to bf16.
#include "cuda/kernels/block.cuh"
#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

namespace {

constexpr int kHeld = 4;           // groups of four elements that a thread of a norm keeps in registers
constexpr int kMostThreads = 512;  // of a norm: rows of up to 4 * kHeld * kMostThreads elements are read once
constexpr int kFlatThreads = 128;  // of what needs no sum

/// The accurate functions: this is bound by memory, what they cost hides behind it.
__device__ __forceinline__ float activated(Activation activation, float x) {
    switch (activation) {
        case Activation::relu: return x < 0.0f ? 0.0f : x;  // NaN stays NaN
        case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case Activation::gelu_tanh: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case Activation::silu: return x / (1.0f + expf(-x));
        case Activation::tanh: return tanhf(x);
        case Activation::none: break;
    }
    return x;
}

/// Where elements c .. c + 3 of a transformed row go: c is a multiple of 4 below the greater of cols and padded_cols, `value` is 0
/// from cols on.
template <bool kVector>
__device__ __forceinline__ void put(const TransformRows& command, int64_t row, int c, float4 value) {
    if (command.out != nullptr) store4<kVector>(command.out + row * command.out_stride, c, command.cols, value);
    if (command.out_bf16 == nullptr) return;
    auto* out = static_cast<__nv_bfloat16*>(command.out_bf16) + row * command.padded_cols + c;
    if constexpr (kVector) {
        if (c < command.padded_cols)
            *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
    } else {
        const float values[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (c + i < command.padded_cols) out[i] = __float2bfloat16_rn(values[i]);
    }
}

/// none, activation, gated_activation. Bound by memory: 4 bytes an element (8 with a gate) in, 2 to 6 out.
/// grid: [rows, groups of four / kFlatThreads]
template <bool kVector>
__global__ void __launch_bounds__(kFlatThreads) flat_kernel(const __grid_constant__ TransformRows command) {
    const int64_t row = blockIdx.x;
    const int c = 4 * (int(blockIdx.y) * kFlatThreads + int(threadIdx.x));
    const int end = max(command.cols, command.out_bf16 == nullptr ? 0 : command.padded_cols);
    if (c >= end) return;
    float4 v = load4<kVector>(command.x + row * command.x_stride, c, command.cols);
    if (command.kind != Transform::none) {
        const Activation f = command.activation;
        v = make_float4(activated(f, v.x), activated(f, v.y), activated(f, v.z), activated(f, v.w));  // 0 stays 0
    }
    if (command.kind == Transform::gated_activation) {
        const float4 up = load4<kVector>(command.up + row * command.up_stride, c, command.cols);
        v = make_float4(v.x * up.x, v.y * up.y, v.z * up.z, v.w * up.w);
    }
    put<kVector>(command, row, c, v);
}

__device__ __forceinline__ float sum4(float4 v) { return (v.x + v.y) + (v.z + v.w); }

/// The squares of what of a group lies within the row, about `mean`.
__device__ __forceinline__ float squares4(float4 v, float mean, int left) {
    const float x = v.x - mean, y = left > 1 ? v.y - mean : 0.0f, z = left > 2 ? v.z - mean : 0.0f,
                w = left > 3 ? v.w - mean : 0.0f;
    return left > 0 ? (x * x + y * y) + (z * z + w * w) : 0.0f;
}

/// rms_norm, layer_norm: one block a row, which stays in registers (a longer one's rest is read again, from cache). The variance is
/// that of the differences from the mean; sums are short chains and then trees. Bound by memory where rows are many, by the latency
/// of one load and one or two sums over the block where they are few.
/// grid: [rows], blockDim.x a multiple of 32
template <bool kVector, bool kMean>
__global__ void __launch_bounds__(kMostThreads) norm_kernel(const __grid_constant__ TransformRows command) {
    HB_SHARED_ARRAY(float, room, [kMaxWarps]);
    HB_SHARED_ARRAY(float, mean_room, [kMaxWarps]);
    const int64_t row = blockIdx.x;
    const float* x = command.x + row * command.x_stride;
    const int cols = command.cols, first = 4 * int(threadIdx.x), step = 4 * int(blockDim.x), rest = first + kHeld * step;
    float4 held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) held[i] = load4<kVector>(x, first + i * step, cols);

    float mean = 0;
    if constexpr (kMean) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) sum += sum4(held[i]);
        for (int c = rest; c < cols; c += step) sum += sum4(load4<kVector>(x, c, cols));
        mean = block_sum(sum, mean_room) / float(cols);
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) sum += squares4(held[i], mean, cols - first - i * step);
    for (int c = rest; c < cols; c += step) sum += squares4(load4<kVector>(x, c, cols), mean, cols - c);
    const float factor = 1.0f / sqrtf(block_sum(sum, room) / float(cols) + command.eps);

    const auto normalized = [&](float4 v, int c) {
        const float4 gamma = load4<kVector>(command.gamma, c, cols);  // 0 behind the end: so is the result
        v = make_float4((v.x - mean) * factor * gamma.x, (v.y - mean) * factor * gamma.y, (v.z - mean) * factor * gamma.z,
                        (v.w - mean) * factor * gamma.w);
        if (kMean && command.beta != nullptr) {
            const float4 beta = load4<kVector>(command.beta, c, cols);
            v = make_float4(v.x + beta.x, v.y + beta.y, v.z + beta.z, v.w + beta.w);
        }
        return v;
    };
    const int end = max(cols, command.out_bf16 == nullptr ? 0 : command.padded_cols);
    const float4 zeros = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int c = first + i * step;
        if (c < end) put<kVector>(command, row, c, c < cols ? normalized(held[i], c) : zeros);
    }
    for (int c = rest; c < end; c += step)
        put<kVector>(command, row, c, c < cols ? normalized(load4<kVector>(x, c, cols), c) : zeros);
}

}  // namespace

cudaError_t run(const TransformRows& command, cudaStream_t stream) {
    const bool norm = command.kind == Transform::rms_norm || command.kind == Transform::layer_norm;
    if (command.rows < 0 || command.cols < 0 || (command.out_bf16 != nullptr && command.padded_cols < command.cols))
        return cudaErrorInvalidValue;
    const int end = command.out_bf16 == nullptr ? command.cols : command.padded_cols;
    if (command.rows == 0 || end == 0 || (command.out == nullptr && command.out_bf16 == nullptr)) return cudaSuccess;
    if (norm && command.cols > 0 && command.gamma == nullptr) return cudaErrorInvalidValue;
    if (command.kind == Transform::gated_activation && command.up == nullptr) return cudaErrorInvalidValue;
    bool vector = command.cols % 4 == 0 && aligned4(command.x, command.x_stride) &&
                  aligned4(command.out, command.out_stride) &&
                  (command.out_bf16 == nullptr ||
                   (command.padded_cols % 4 == 0 && reinterpret_cast<uintptr_t>(command.out_bf16) % 8 == 0));
    if (!norm) {
        if (command.kind == Transform::gated_activation) vector = vector && aligned4(command.up, command.up_stride);
        const dim3 grid(unsigned(command.rows), blocks_of(end, 4 * kFlatThreads));
        return launch(vector ? &flat_kernel<true> : &flat_kernel<false>, grid, dim3(kFlatThreads), 0, stream, command);
    }
    vector = vector && aligned4(command.gamma, 4) && aligned4(command.beta, 4);
    const unsigned warps = blocks_of(end, 4 * kHeld * 32);
    const dim3 grid(unsigned(command.rows)), block(32 * (warps < kMostThreads / 32 ? warps : kMostThreads / 32));
    if (command.kind == Transform::rms_norm)
        return launch(vector ? &norm_kernel<true, false> : &norm_kernel<false, false>, grid, block, 0, stream, command);
    return launch(vector ? &norm_kernel<true, true> : &norm_kernel<false, true>, grid, block, 0, stream, command);
}

}  // namespace halfbyte::cuda
