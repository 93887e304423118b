// Products with at most 16 rows, the work of generation: each weight is read once, and the rate at which it comes is the bound.
#include "cuda/kernels/gemv_exact.cuh"
#include "cuda/kernels/gemv_mma.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/parts.h"

namespace halfbyte::cuda {

namespace {

/// Scales of a row in a tile.
int scales_of_tile(const TiledWeight& w) {
    if (w.format != Format::codebook4 && w.format != Format::int8) return 0;
    return w.block_shift >= 6 ? 1 : w.block_shift == 5 ? 2 : 4;
}

bool valid(const Gemv& command) {
    if (command.rows < 1 || command.rows > kGemvRows || command.parts < 1 || command.parts > kMaxParts) return false;
    for (int i = 0; i < command.parts; ++i) {
        const TiledWeight& w = command.part[i].weight;
        if (w.rows < 1 || w.cols != command.part[0].weight.cols || w.cols < 1 || w.block_shift < 4) return false;
        if (int64_t(w.row_tiles) * 16 * w.blocks > INT32_MAX) return false;
        if (w.nested_levels != nullptr && w.offsets != nullptr) return false;
    }
    return true;
}

/// Over how many blocks the columns of a unit are split. The time of a multiprocessor is that of the blocks it gets, one after
/// the other, and about a microsecond more for sums over blocks: as long as 24 KB take.
int choose_splits(int units, int64_t unit_bytes, int slots, int most, int64_t partial_floats) {
    constexpr int64_t kSplitCost = 24 * 1024;
    most = int(min(int64_t(most), kPartialFloats / (partial_floats * units)));
    if (units > kCounters) return 1;
    int best = 1;
    int64_t best_cost = INT64_MAX;
    for (int splits = 1; splits <= max(most, 1); ++splits) {
        const int64_t turns = (int64_t(units) * splits + slots - 1) / slots;
        const int64_t cost = turns * unit_bytes / splits + (splits > 1 ? kSplitCost : 0);
        if (cost < best_cost) best = splits, best_cost = cost;
    }
    return best;
}

int count_units(const Gemv& command, int tiles) {
    int units = 0;
    for (int i = 0; i < command.parts; ++i) units += (command.part[i].weight.row_tiles + tiles - 1) / tiles;
    return units;
}

constexpr int kMaxSplits = 64;

template <Format kFormat, int kScales, int kRows>
cudaError_t run_exact(const Gemv& command, cudaStream_t stream) {
    constexpr int kFeatures = kExactRowTiles<kFormat> * 16;
    const int units = count_units(command, kExactRowTiles<kFormat>), col_tiles = command.part[0].weight.col_tiles;
    const int64_t unit_bytes = int64_t(kExactRowTiles<kFormat>) * col_tiles * Tile<kFormat>::kVectors * 512;
    const int splits =
        choose_splits(units, unit_bytes, multiprocessors(), min(kMaxSplits, col_tiles / kExactMaxWarps), kFeatures * kRows);
    const int warps = units * splits <= 2 * multiprocessors() ? kExactMaxWarps : kExactMaxWarps / 2;
    return launch(&gemv_exact_kernel<kFormat, kScales, kRows>, dim3(unsigned(units), unsigned(splits)),
                  dim3(unsigned(warps) * 32), 0, stream, command);
}

template <Format kFormat, int kScales, int kGroups>
cudaError_t run_mma(const Gemv& command, cudaStream_t stream) {
    constexpr int kTiles = kMmaWarps * kMmaRowTiles<kFormat>;
    const int units = count_units(command, kTiles), col_tiles = command.part[0].weight.col_tiles;
    const int64_t unit_bytes = int64_t(kTiles) * col_tiles * Tile<kFormat>::kVectors * 512;
    const int splits =
        choose_splits(units, unit_bytes, 2 * multiprocessors(), min(kMaxSplits, col_tiles / 4), kTiles * 16 * kGroups * 8);
    const auto kernel = &gemv_mma_kernel<kFormat, kScales, kGroups>;
    constexpr int kShared = kMmaSharedBytes<kFormat>;
    if (kShared > 48 * 1024) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
        if (error != cudaSuccess) return error;
    }
    return launch(kernel, dim3(unsigned(units), unsigned(splits)), dim3(kMmaWarps * 32), kShared, stream, command);
}

template <Format kFormat, int kScales>
cudaError_t run_rows(const Gemv& command, cudaStream_t stream) {
    static_assert(kGemvExactRows == 2 && kGemvRows == 16);
    if (command.rows == 1) return run_exact<kFormat, kScales, 1>(command, stream);
    if (command.rows == 2) return run_exact<kFormat, kScales, 2>(command, stream);
    if (command.rows <= 8) return run_mma<kFormat, kScales, 1>(command, stream);
    return run_mma<kFormat, kScales, 2>(command, stream);
}

}  // namespace

cudaError_t run(const Gemv& command, cudaStream_t stream) {
    if (!valid(command)) return cudaErrorInvalidValue;
    return for_each_kind(command, scales_of_tile, [&](auto tag, const Gemv& together, int scales) {
        constexpr Format kFormat = decltype(tag)::kFormat;
        if constexpr (!Tile<kFormat>::kHasScales) {
            return run_rows<kFormat, 0>(together, stream);
        } else {
            switch (scales) {
                case 1: return run_rows<kFormat, 1>(together, stream);
                case 2: return run_rows<kFormat, 2>(together, stream);
                default: return run_rows<kFormat, 4>(together, stream);
            }
        }
    });
}

}  // namespace halfbyte::cuda
