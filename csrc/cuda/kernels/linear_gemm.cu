// Products with many rows, the work of reading prompts: tensor cores are the bound.
#include "cuda/kernels/gemm.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/parts.h"

namespace halfbyte::cuda {

namespace {

/// Scales of a row in a column tile, as the kernels know them: blocks of 32 columns are read as two of 16; bytes, whose decoding
/// needs the registers of the other kernel, have four at all times.
int scales_of_tile(const TiledWeight& w) {
    if (w.format == Format::codebook4) return w.block_shift >= 6 ? 1 : 4;
    return w.format == Format::int8 ? 4 : 0;
}

bool valid(const Gemm& command) {
    if (command.rows < 1 || command.parts < 1 || command.parts > kMaxParts) return false;
    for (int i = 0; i < command.parts; ++i) {
        const TiledWeight& w = command.part[i].weight;
        if (w.rows < 1 || w.cols < 1 || w.cols != command.part[0].weight.cols || w.block_shift < 4) return false;
    }
    return reinterpret_cast<uintptr_t>(command.x) % 16 == 0;
}

/// Over how many blocks the columns are split, so that every multiprocessor has one; each split has at least eight column tiles.
int choose_splits(int64_t blocks, int col_tiles, int64_t values) {
    int64_t splits = multiprocessors() / blocks;
    splits = min(splits, int64_t(col_tiles / 8));
    splits = min(splits, kPartialFloats / (blocks * values));
    return blocks > kCounters || splits < 2 ? 1 : int(splits);
}

template <Format kFormat, int kScales, int kRows>
cudaError_t run_shape(const Gemm& command, cudaStream_t stream) {
    using Shape = GemmShape<kFormat, kScales, kRows>;
    const auto kernel = &gemm_kernel<kFormat, kScales, kRows>;
    if (Shape::kSharedBytes > (48 << 10)) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
        if (error != cudaSuccess) return error;
    }
    int64_t units = 0;
    for (int i = 0; i < command.parts; ++i) units += (command.part[i].weight.row_tiles + kGemmTiles - 1) / kGemmTiles;
    const int64_t rows = (int64_t(command.rows) + kRows - 1) / kRows;
    if (rows > 65535) return cudaErrorInvalidValue;
    const int splits = choose_splits(units * rows, command.part[0].weight.col_tiles, int64_t(kRows) * kGemmFeatures);
    return launch(kernel, dim3(unsigned(units), unsigned(rows), unsigned(splits)), dim3(kGemmThreads), Shape::kSharedBytes,
                  stream, command);
}

template <Format kFormat, int kScales>
cudaError_t run_rows(const Gemm& command, cudaStream_t stream) {
    if (command.rows <= 32) return run_shape<kFormat, kScales, 32>(command, stream);
    // Values of 4 bytes: 128 rows beside them leave no room for two stages' registers.
    if constexpr (kFormat == Format::f32) {
        return run_shape<kFormat, kScales, 64>(command, stream);
    } else {
        if (command.rows <= 64) return run_shape<kFormat, kScales, 64>(command, stream);
        return run_shape<kFormat, kScales, 128>(command, stream);
    }
}

}  // namespace

cudaError_t run(const Gemm& command, cudaStream_t stream) {
    if (!valid(command)) return cudaErrorInvalidValue;
    return for_each_kind(command, scales_of_tile, [&](auto tag, const Gemm& together, int scales) {
        constexpr Format kFormat = decltype(tag)::kFormat;
        if constexpr (!Tile<kFormat>::kHasScales) {
            return run_rows<kFormat, 0>(together, stream);
        } else {
            if constexpr (kFormat == Format::codebook4)
                if (scales == 1) return run_rows<kFormat, 1>(together, stream);
            return run_rows<kFormat, 4>(together, stream);
        }
    });
}

}  // namespace halfbyte::cuda
