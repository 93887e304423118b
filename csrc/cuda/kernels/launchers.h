// The host's way to the kernels: one overload for each command. They queue work and come back; they never wait, allocate or print.
// What they return is an error of the launch (cudaErrorInvalidValue where a command contradicts commands.h).
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "cuda/commands.h"

namespace halfbyte::cuda {

cudaError_t run(const Gemv& command, cudaStream_t stream);            // linear_gemv.cu
cudaError_t run(const Gemm& command, cudaStream_t stream);            // linear_gemm.cu
cudaError_t run(const LinearF32& command, cudaStream_t stream);       // linear_f32.cu
cudaError_t run(const Embed& command, cudaStream_t stream);           // embed.cu
cudaError_t run(const TransformRows& command, cudaStream_t stream);   // rows.cu
cudaError_t run(const Rope& command, cudaStream_t stream);            // rows.cu
cudaError_t run(const Add& command, cudaStream_t stream);             // rows.cu
cudaError_t run(const ScaleColumns& command, cudaStream_t stream);    // rows.cu
cudaError_t run(const GatherRows& command, cudaStream_t stream);      // rows.cu
cudaError_t run(const ScatterColumns& command, cudaStream_t stream);  // rows.cu
cudaError_t run(const Pool& command, cudaStream_t stream);            // rows.cu
cudaError_t run(const Attention& command, cudaStream_t stream);       // attention.cu
cudaError_t run(const StoreKv& command, cudaStream_t stream);         // store_kv.cu
cudaError_t run(const Adapt& command, cudaStream_t stream);           // adapters.cu
cudaError_t run(const Sample& command, cudaStream_t stream);          // sample.cu

/// Multiprocessors that a grid should fill: set by the plugin when it opens a device, 132 until then. Splits of sums follow it.
inline std::atomic<int>& multiprocessor_count() {
    static std::atomic<int> count{132};
    return count;
}
inline int multiprocessors() { return multiprocessor_count().load(std::memory_order_relaxed); }

/// Bytes that Sample::scratch needs.
size_t sample_scratch_bytes(int32_t count, int32_t vocab);

}  // namespace halfbyte::cuda
