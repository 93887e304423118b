// See attention_exact.cuh.
#include "cuda/kernels/attention_exact.cuh"

namespace halfbyte::cuda::attention {

cudaError_t exact(const Attention& a, int32_t min_rows, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((a.max_rows + kExactQueries - 1) / kExactQueries), static_cast<unsigned>(a.heads),
                    static_cast<unsigned>(a.count));
    return launch(exact_kernel, grid, kExactThreads, 0, stream, a, min_rows);
}

}  // namespace halfbyte::cuda::attention
