// Which of the three ways an Attention command goes: few queries against much (decode), many (prefill), or float32 throughout
// (exact). A batch that may hold sequences of both kinds goes two ways, each of which leaves the other's sequences alone.
#include "cuda/kernels/attention.cuh"

#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

namespace {

bool is_consistent(const Attention& a) {
    const bool scales = a.k.element != Element::i8 || (a.k.scales != nullptr && a.v.scales != nullptr);
    return a.count >= 0 && a.max_rows >= 0 && a.kv_heads > 0 && a.heads > 0 && a.heads % a.kv_heads == 0 && a.head_dim > 0 &&
           a.k.element == a.v.element && scales && a.splits >= 1 && a.splits <= kAttentionSplits &&
           (a.splits == 1 || a.partials != nullptr) && (a.bias == nullptr || a.count <= 1);
}

}  // namespace

cudaError_t run(const Attention& a, cudaStream_t stream) {
    using namespace attention;
    if (!is_consistent(a)) return cudaErrorInvalidValue;
    if (a.count == 0 || a.max_rows == 0) return cudaSuccess;
    const bool small_heads = a.head_dim <= kMaxHeadDim;
    const bool vectors = a.k.element != Element::f32 || (loads_vectors(a.k, a.head_dim) && loads_vectors(a.v, a.head_dim));
    const bool decodes = small_heads && vectors;
    const bool prefills = decodes && a.exact == 0 && a.head_dim % 4 == 0 && a.q_stride % 4 == 0 && a.out_stride % 2 == 0 &&
                          reinterpret_cast<uintptr_t>(a.q) % 16 == 0 && reinterpret_cast<uintptr_t>(a.out) % 8 == 0;
    if (decodes && a.max_rows <= kDecodeRows) return decode(a, stream);
    const bool mixed = decodes && a.count > 1;
    if (mixed)
        if (const cudaError_t error = decode(a, stream); error != cudaSuccess) return error;
    const int32_t min_rows = mixed ? kDecodeRows + 1 : 0;
    return prefills ? prefill(a, min_rows, 0, stream) : exact(a, min_rows, stream);
}

}  // namespace halfbyte::cuda
