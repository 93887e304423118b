// See attention_prefill.cuh.
#include "cuda/kernels/attention_prefill.cuh"

namespace halfbyte::cuda::attention {

namespace {

template <class Operand, int kWidth, int kRowTiles>
cudaError_t prefill_tiles(const Attention& a, int32_t min_rows, cudaStream_t stream) {
    constexpr int kRows = 16 * kRowTiles * kPrefillWarps, kBytes = prefill_shared_bytes<kWidth, kRowTiles>();
    static_assert(kBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 have no more");
    const auto kernel = prefill_kernel<Operand, kWidth, kRowTiles>;
    if (kBytes > 48 * 1024) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
        if (error != cudaSuccess) return error;
    }
    const dim3 grid(static_cast<unsigned>((a.max_rows + kRows - 1) / kRows), static_cast<unsigned>(a.heads),
                    static_cast<unsigned>(a.count));
    return launch(kernel, grid, kPrefillThreads, kBytes, stream, a, min_rows);
}

/// 128 queries a block where that leaves blocks for every multiprocessor, else 64. Softcap and bias have no registers left for 128.
template <class Operand, int kWidth>
cudaError_t prefill_rows(const Attention& a, int32_t min_rows, int row_tiles, cudaStream_t stream) {
    constexpr int64_t kManyBlocks = 256;
    const int64_t blocks = (int64_t(a.max_rows) + 127) / 128 * a.heads * a.count;
    const bool plain = a.softcap <= 0 && a.bias == nullptr;
    if (plain && (row_tiles == 2 || (row_tiles == 0 && blocks >= kManyBlocks)))
        return prefill_tiles<Operand, kWidth, 2>(a, min_rows, stream);
    return prefill_tiles<Operand, kWidth, 1>(a, min_rows, stream);
}

template <class Operand>
cudaError_t prefill_width(const Attention& a, int32_t min_rows, int row_tiles, cudaStream_t stream) {
    if (a.head_dim <= 32) return prefill_tiles<Operand, 32, 1>(a, min_rows, stream);
    if (a.head_dim <= 64) return prefill_rows<Operand, 64>(a, min_rows, row_tiles, stream);
    if (a.head_dim <= 96) return prefill_tiles<Operand, 96, 1>(a, min_rows, stream);
    if (a.head_dim <= 128) return prefill_rows<Operand, 128>(a, min_rows, row_tiles, stream);
    return prefill_tiles<Operand, 256, 1>(a, min_rows, stream);
}

}  // namespace

cudaError_t prefill(const Attention& a, int32_t min_rows, int32_t row_tiles, cudaStream_t stream) {
    return a.k.element == Element::bf16 ? prefill_width<OperandBf16>(a, min_rows, row_tiles, stream)
                                        : prefill_width<OperandF16>(a, min_rows, row_tiles, stream);
}

}  // namespace halfbyte::cuda::attention
