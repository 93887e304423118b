// Rotary embedding, and the small ops on rows: sums, gains, moves, pooling.
#include "cuda/kernels/block.cuh"
#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

namespace {

constexpr int kThreads = 128;

struct CosineSine {
    float cosine, sine;
};

/// Of any finite float, to about 1.5 units of float32: the angle less a multiple of pi / 2, which two doubles hold, in three
/// operations in double; then Taylor series, whose first terms left out are below 2^-28. (sincosf() keeps the digits of 2 / pi for
/// great angles in local memory.)
__device__ __forceinline__ CosineSine cosine_sine(float angle) {
    const double a = double(angle);
    const double turns = rint(a * 0.63661977236758134);
    double r = fma(-turns, 1.5707963267948966, a);
    r = fma(-turns, 6.123233995736766e-17, r);
    const float x = float(r), z = x * x;
    float s = fmaf(z, 2.7557319224e-6f, -1.9841269841e-4f);
    s = fmaf(z, s, 8.3333333333e-3f);
    s = fmaf(z, s, -1.6666666667e-1f);
    const float sine = fmaf(x * z, s, x);
    float c = fmaf(z, -2.7557319224e-7f, 2.4801587302e-5f);
    c = fmaf(z, c, -1.3888888889e-3f);
    c = fmaf(z, c, 4.1666666667e-2f);
    c = fmaf(z, c, -0.5f);
    const float cosine = fmaf(z, c, 1.0f);
    const int quadrant = int(int64_t(turns) & 3);
    const float first = quadrant % 2 == 0 ? cosine : sine, second = quadrant % 2 == 0 ? sine : cosine;
    return {quadrant == 1 || quadrant == 2 ? -first : first, quadrant >= 2 ? -second : second};
}

/// A block turns kPairs pairs of one row, all with cosines and sines that it has computed once. Bound by memory (8 bytes an element
/// of the heads); for a row or two by latency.
/// grid: [rows, heads / heads_per_block]; dynamic shared memory: [half] cosines, [half] sines
template <bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ Rope command, int heads_per_block) {
    HB_DYNAMIC_SHARED(memory);
    auto* cosines = reinterpret_cast<float*>(memory);
    const int half = command.half;
    float* sines = cosines + half;
    const float position = float(command.positions[blockIdx.x]);
    for (int i = int(threadIdx.x); i < half; i += kThreads) {
        const CosineSine turn = cosine_sine(position * command.frequencies[i]);
        cosines[i] = turn.cosine * command.magnitude;
        sines[i] = turn.sine * command.magnitude;
    }
    __syncthreads();
    const int first_head = int(blockIdx.y) * heads_per_block;
    const int heads = min(heads_per_block, command.heads - first_head);
    float* x = command.x + int64_t(blockIdx.x) * command.x_stride + int64_t(first_head) * command.head_dim;
    for (int item = int(threadIdx.x); item < heads * half; item += kThreads) {
        const int head = item / half, i = item - head * half;
        float* of_head = x + int64_t(head) * command.head_dim;
        float& first = of_head[kInterleaved ? 2 * i : i];
        float& second = of_head[kInterleaved ? 2 * i + 1 : i + half];
        const float a = first, b = second, c = cosines[i], s = sines[i];
        first = a * c - b * s;
        second = b * c + a * s;
    }
}

// The rest is bound by memory; grid: [rows, groups of four / kThreads].

__device__ __forceinline__ int column() { return 4 * (int(blockIdx.y) * kThreads + int(threadIdx.x)); }
dim3 grid_of(int64_t rows, int64_t cols) { return dim3(unsigned(rows), blocks_of(cols, 4 * kThreads)); }

template <bool kVector>
__global__ void __launch_bounds__(kThreads) add_kernel(const __grid_constant__ Add command) {
    const int c = column();
    if (c >= command.cols) return;
    float* row = command.x + int64_t(blockIdx.x) * command.x_stride;
    const float4 x = load4<kVector>(row, c, command.cols);
    const float4 y = load4<kVector>(command.y + int64_t(blockIdx.x) * command.y_stride, c, command.cols);
    store4<kVector>(row, c, command.cols, make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w));
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) scale_columns_kernel(const __grid_constant__ ScaleColumns command) {
    const int c = column();
    if (c >= command.cols) return;
    float* row = command.x + int64_t(blockIdx.x) * command.x_stride;
    const float4 x = load4<kVector>(row, c, command.cols), gain = load4<kVector>(command.gain, c, command.cols);
    store4<kVector>(row, c, command.cols, make_float4(x.x * gain.x, x.y * gain.y, x.z * gain.z, x.w * gain.w));
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const __grid_constant__ GatherRows command) {
    const int c = column();
    if (c >= command.cols) return;
    const float* row = command.x + int64_t(command.indices[blockIdx.x]) * command.x_stride;
    store4<kVector>(command.out + int64_t(blockIdx.x) * command.out_stride, c, command.cols,
                    load4<kVector>(row, c, command.cols));
}

/// grid: [rows, columns / kThreads]
__global__ void __launch_bounds__(kThreads) scatter_columns_kernel(const __grid_constant__ ScatterColumns command) {
    const int j = int(blockIdx.y) * kThreads + int(threadIdx.x);
    if (j >= command.cols) return;
    const float value = command.x[int64_t(blockIdx.x) * command.x_stride + j];
    command.y[int64_t(blockIdx.x) * command.y_stride + command.columns[j]] = value;
}

// --- pooling ------------------------------------------------------------------------------------------------------

constexpr int kPoolCols = 32;    // of a block: a warp's load is a full line
constexpr int kPoolGroups = 16;  // rows that are read side by side

/// The greater; NaN wins.
__device__ __forceinline__ float greater(float a, float b) { return b > a || b != b ? b : a; }

/// Bound by memory. Each of kPoolGroups warps takes every kPoolGroups-th row, then they meet in order.
/// grid: [sequences, columns / kPoolCols]
__global__ void __launch_bounds__(kPoolCols* kPoolGroups) pool_kernel(const __grid_constant__ Pool command) {
    HB_SHARED_ARRAY(float, room, [kPoolGroups][kPoolCols]);
    const int lane = int(threadIdx.x) % kPoolCols, group = int(threadIdx.x) / kPoolCols;
    const int c = int(blockIdx.y) * kPoolCols + lane;
    const int first = command.first[blockIdx.x], count = command.count[blockIdx.x];
    const bool exists = c < command.cols;
    const float* x = command.x + int64_t(first) * command.x_stride + c;
    const bool mean = command.pooling == Pooling::mean, greatest = command.pooling == Pooling::max;
    float value = greatest ? -INFINITY : 0.0f;
    if (exists && (mean || greatest)) {
#pragma unroll 4
        for (int r = group; r < count; r += kPoolGroups) {
            const float next = x[int64_t(r) * command.x_stride];
            value = mean ? value + next : greater(value, next);
        }
    }
    room[group][lane] = value;
    __syncthreads();
    if (group != 0 || !exists) return;
    if (mean || greatest) {
        for (int g = 1; g < kPoolGroups; ++g) value = mean ? value + room[g][lane] : greater(value, room[g][lane]);
        if (mean) value = value / float(max(count, 1));
    } else if (count > 0) {
        value = x[command.pooling == Pooling::last ? int64_t(count - 1) * command.x_stride : 0];
    }
    command.out[int64_t(blockIdx.x) * command.out_stride + c] = count > 0 ? value : 0.0f;
}

/// Divides rows of a few thousand elements by their norms: bound by latency. The sum of squares is one of doubles, so that rows
/// whose squares no float holds are divided as well; half a double's speed is enough for so few.
/// grid: [sequences]
__global__ void __launch_bounds__(kThreads) unit_kernel(const __grid_constant__ Pool command) {
    HB_SHARED_ARRAY(double, room, [kMaxWarps]);
    float* row = command.out + int64_t(blockIdx.x) * command.out_stride;
    double sum = 0;
    for (int c = int(threadIdx.x); c < command.cols; c += kThreads) sum += double(row[c]) * double(row[c]);
    const double norm = sqrt(block_sum(sum, room));
    const float factor = float(1.0 / (norm < 1e-12 ? 1e-12 : norm));  // NaN stays NaN
    for (int c = int(threadIdx.x); c < command.cols; c += kThreads) row[c] *= factor;
}

}  // namespace

cudaError_t run(const Rope& command, cudaStream_t stream) {
    if (command.rows < 0 || command.heads < 0 || command.half < 0 || 2 * int64_t(command.half) > command.head_dim)
        return cudaErrorInvalidValue;
    if (command.rows == 0 || command.heads == 0 || command.half == 0) return cudaSuccess;
    const size_t shared = 2 * size_t(command.half) * sizeof(float);
    if (shared > 48 * 1024) return cudaErrorInvalidValue;
    // Eight pairs a thread where rows are many; two where they are few.
    const int pairs = (command.rows < 16 ? 2 : 8) * kThreads;
    const int heads = pairs > command.half ? pairs / command.half : 1;
    const dim3 grid(unsigned(command.rows), blocks_of(command.heads, heads));
    return launch(command.interleaved != 0 ? &rope_kernel<true> : &rope_kernel<false>, grid, dim3(kThreads), shared, stream,
                  command, heads);
}

cudaError_t run(const Add& command, cudaStream_t stream) {
    if (command.rows < 0 || command.cols < 0) return cudaErrorInvalidValue;
    if (command.rows == 0 || command.cols == 0) return cudaSuccess;
    const bool vector =
        command.cols % 4 == 0 && aligned4(command.x, command.x_stride) && aligned4(command.y, command.y_stride);
    return launch(vector ? &add_kernel<true> : &add_kernel<false>, grid_of(command.rows, command.cols), dim3(kThreads), 0,
                  stream, command);
}

cudaError_t run(const ScaleColumns& command, cudaStream_t stream) {
    if (command.rows < 0 || command.cols < 0) return cudaErrorInvalidValue;
    if (command.rows == 0 || command.cols == 0) return cudaSuccess;
    const bool vector = command.cols % 4 == 0 && aligned4(command.x, command.x_stride) && aligned4(command.gain, 4);
    return launch(vector ? &scale_columns_kernel<true> : &scale_columns_kernel<false>, grid_of(command.rows, command.cols),
                  dim3(kThreads), 0, stream, command);
}

cudaError_t run(const GatherRows& command, cudaStream_t stream) {
    if (command.rows < 0 || command.cols < 0) return cudaErrorInvalidValue;
    if (command.rows == 0 || command.cols == 0) return cudaSuccess;
    const bool vector =
        command.cols % 4 == 0 && aligned4(command.x, command.x_stride) && aligned4(command.out, command.out_stride);
    return launch(vector ? &gather_rows_kernel<true> : &gather_rows_kernel<false>, grid_of(command.rows, command.cols),
                  dim3(kThreads), 0, stream, command);
}

cudaError_t run(const ScatterColumns& command, cudaStream_t stream) {
    if (command.rows < 0 || command.cols < 0) return cudaErrorInvalidValue;
    if (command.rows == 0 || command.cols == 0) return cudaSuccess;
    return launch(&scatter_columns_kernel, dim3(unsigned(command.rows), blocks_of(command.cols, kThreads)), dim3(kThreads),
                  0, stream, command);
}

cudaError_t run(const Pool& command, cudaStream_t stream) {
    if (command.sequences < 0 || command.cols < 0) return cudaErrorInvalidValue;
    if (command.sequences == 0 || command.cols == 0) return cudaSuccess;
    const dim3 grid(unsigned(command.sequences), blocks_of(command.cols, kPoolCols));
    const cudaError_t error = launch(&pool_kernel, grid, dim3(kPoolCols * kPoolGroups), 0, stream, command);
    if (error != cudaSuccess || command.normalize == 0) return error;
    return launch(&unit_kernel, dim3(unsigned(command.sequences)), dim3(kThreads), 0, stream, command);
}

}  // namespace halfbyte::cuda
