// Adapters of a batch whose rows name different ones: two kernels, A x for every pair, then y.
#include "cuda/kernels/adapters.cuh"
#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

namespace {

template <class T>
cudaError_t shrink(const Adapt& command, cudaStream_t stream) {
    const dim3 grid(unsigned(command.segment_count), blocks_of(command.max_segment, T::kBlockRows),
                    blocks_of(command.max_rank, T::kBlockRanks));
    return launch(&shrink_kernel<T>, grid, dim3(32 * kShrinkWarps), 0, stream, command);
}

template <int kRows>
cudaError_t expand(const Adapt& command, cudaStream_t stream) {
    const dim3 grid(unsigned(command.segment_count), blocks_of(command.max_segment, kRows),
                    blocks_of(command.out, kExpandCols));
    return launch(&expand_kernel<kRows>, grid, dim3(kExpandCols), 0, stream, command);
}

}  // namespace

cudaError_t run(const Adapt& command, cudaStream_t stream) {
    if (command.row_count < 0 || command.segment_count < 0 || command.max_segment < 0 || command.max_rank < 0 ||
        command.in < 0 || command.out < 0)
        return cudaErrorInvalidValue;
    if (command.segment_count == 0 || command.max_segment == 0 || command.out == 0) return cudaSuccess;
    if (command.max_rank > 0) {
        if (command.low == nullptr) return cudaErrorInvalidValue;
        cudaError_t error = cudaSuccess;
        if (command.max_segment <= 2)
            error = shrink<ShrinkTile<2, 1, 8, 1, 1>>(command, stream);
        else if (command.max_segment <= 256)
            error = shrink<ShrinkTile<4, 4, 8, 1, 1>>(command, stream);
        else
            error = shrink<ShrinkTile<4, 8, 2, 2, 2>>(command, stream);
        if (error != cudaSuccess) return error;
    }
    if (command.max_segment == 1) return expand<1>(command, stream);
    if (command.max_segment <= 4) return expand<4>(command, stream);
    return expand<16>(command, stream);
}

}  // namespace halfbyte::cuda
