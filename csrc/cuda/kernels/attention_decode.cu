// See attention_decode.cuh.
#include "cuda/kernels/attention_decode.cuh"

#include <algorithm>

namespace halfbyte::cuda::attention {

namespace {

template <class Source, int kLanes, int kQueries>
cudaError_t decode_as(const Attention& a, cudaStream_t stream) {
    const int rows = std::min<int>(a.max_rows, kDecodeRows);
    const int chunks = (rows * (a.heads / a.kv_heads) + kQueries - 1) / kQueries;
    const dim3 grid(static_cast<unsigned>(chunks * a.kv_heads), static_cast<unsigned>(a.splits),
                    static_cast<unsigned>(a.count));
    const cudaError_t error = launch(decode_kernel<Source, kLanes, kQueries>, grid, kDecodeThreads, 0, stream, a, chunks);
    if (error != cudaSuccess || a.splits == 1) return error;
    const dim3 merges(static_cast<unsigned>(a.heads), static_cast<unsigned>(rows), static_cast<unsigned>(a.count));
    return launch(merge_kernel, merges, kDecodeThreads, 0, stream, a);
}

template <class Source, int kLanes>
cudaError_t decode_queries(const Attention& a, cudaStream_t stream) {
    if constexpr (Source::kBytes == 4) {  // for exactness: fewer kernels
        return decode_as<Source, kLanes, 4>(a, stream);
    } else {
        const int pairs = std::min<int>(a.max_rows, kDecodeRows) * (a.heads / a.kv_heads);
        if (pairs == 1) return decode_as<Source, kLanes, 1>(a, stream);
        if (pairs <= 4) return decode_as<Source, kLanes, 4>(a, stream);
        return decode_as<Source, kLanes, 8>(a, stream);
    }
}

template <class Source>
cudaError_t decode_lanes(const Attention& a, cudaStream_t stream) {
    if (a.head_dim <= 64) return decode_queries<Source, 8>(a, stream);
    if (a.head_dim <= 128) return decode_queries<Source, 16>(a, stream);
    return decode_queries<Source, 32>(a, stream);
}

}  // namespace

cudaError_t decode(const Attention& a, cudaStream_t stream) {
    switch (a.k.element) {
        case Element::f32: return decode_lanes<DecodeF32>(a, stream);
        case Element::f16:
        case Element::bf16: return decode_lanes<Decode16>(a, stream);
        case Element::i8: return decode_lanes<DecodeI8>(a, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace halfbyte::cuda::attention
