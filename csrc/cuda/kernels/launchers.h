// The host's way to the kernels: one overload for each command. They queue work and come back; they never wait, allocate or print.
// What they return is an error of the launch (cudaErrorInvalidValue where a command contradicts commands.h).
#pragma once

#include <cuda_runtime.h>

#include "cuda/commands.h"

namespace halfbyte::cuda {

cudaError_t run(const Gemv& command, cudaStream_t stream);            // linear_gemv.cu
cudaError_t run(const Gemm& command, cudaStream_t stream);            // linear_gemm.cu
cudaError_t run(const LinearF32& command, cudaStream_t stream);       // linear_f32.cu
cudaError_t run(const Embed& command, cudaStream_t stream);           // embed.cu
cudaError_t run(const TransformRows& command, cudaStream_t stream);   // transform_rows.cu
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

/// Multiprocessors of the device that is open: how many blocks are enough to fill it. launchers.cu
int multiprocessors();
void set_multiprocessors(int count);

/// Bytes that Sample::scratch needs.
size_t sample_scratch_bytes(int32_t count, int32_t vocab);

}  // namespace halfbyte::cuda
