// StoreKv: see store_kv.cuh.
#include "cuda/kernels/store_kv.cuh"

#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

namespace {

template <bool kVectors>
cudaError_t store_as(const StoreKv& c, cudaStream_t stream) {
    const int64_t pairs = int64_t(c.tokens) * c.heads, warps = store::kThreads / 32;
    const dim3 grid(static_cast<unsigned>((pairs + warps - 1) / warps));
    switch (c.element) {
        case Element::f32:
            return launch(store::store_kv_kernel<Element::f32, kVectors>, grid, store::kThreads, 0, stream, c);
        case Element::f16:
            return launch(store::store_kv_kernel<Element::f16, kVectors>, grid, store::kThreads, 0, stream, c);
        case Element::bf16:
            return launch(store::store_kv_kernel<Element::bf16, kVectors>, grid, store::kThreads, 0, stream, c);
        case Element::i8: return launch(store::store_kv_kernel<Element::i8, kVectors>, grid, store::kThreads, 0, stream, c);
    }
    return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t run(const StoreKv& c, cudaStream_t stream) {
    if (c.tokens < 0 || c.heads <= 0 || c.head_dim <= 0 || (c.element == Element::i8) != (c.scales != nullptr))
        return cudaErrorInvalidValue;
    if (c.tokens == 0) return cudaSuccess;
    const bool vectors = reinterpret_cast<uintptr_t>(c.x) % 16 == 0 && c.x_stride % 4 == 0 && c.head_dim % 4 == 0;
    return vectors ? store_as<true>(c, stream) : store_as<false>(c, stream);
}

}  // namespace halfbyte::cuda
