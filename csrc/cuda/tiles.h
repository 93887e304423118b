// A weight of any storage in the tiles that the kernels read (TiledWeight in commands.h), made on the host piece by piece.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/weight.h"
#include "cuda/commands.h"

namespace halfbyte::cuda {

/// What a weight becomes. Sizes are of one row tile (16 rows); a plane is row_tiles of them behind one another.
struct TiledPlanes {
    Format format = Format::f32;
    int32_t rows = 0, cols = 0;
    int32_t row_tiles = 0, col_tiles = 0;
    int32_t blocks = 0, block_shift = 31;
    size_t tile_codes = 0;           ///< bytes
    size_t tile_scales = 0;          ///< bytes; 0: a float format
    size_t tile_offsets = 0;         ///< bytes; 0: none
    std::array<float, 16> levels{};  ///< codebook4
    /// Double-quantised scales, in the planes of the weight, which must live until they were copied; null: scales are float32.
    const float* nested_levels = nullptr;  ///< [256]
    const float* nested_scales = nullptr;  ///< [nested_count]
    int32_t nested_count = 0, nested_shift = 0;
    float nested_offset = 0;

    size_t code_bytes() const { return tile_codes * size_t(row_tiles); }
    size_t scale_bytes() const { return tile_scales * size_t(row_tiles); }
    size_t offset_bytes() const { return tile_offsets * size_t(row_tiles); }
};

/// Decodes nothing. Codebook4 and Int8Blocks whose rows are whole blocks of a power of two of at least 16, or a single one, and
/// the float formats keep their codes; everything else becomes f32, the values of Storage::decode_row.
/// Errors: unsupported where a side has 2^31 - 64 elements or more.
TiledPlanes plan_tiles(const Weight& weight);

/// Writes row tiles first .. last - 1: `codes` gets (last - first) * tile_codes bytes, `scales` and `offsets` likewise (null where
/// the plan has none). Thread-safe: ranges may be packed side by side.
void pack_row_tiles(const Weight& weight, const TiledPlanes& plan, int64_t first, int64_t last, void* codes, void* scales,
                    float* offsets);

/// The command's view of planes that were uploaded. `levels` and `nested_*` are device copies of what the plan holds.
TiledWeight tiled_weight(const TiledPlanes& plan, const void* codes, const void* scales, const float* offsets,
                         const float* levels, const float* nested_levels, const float* nested_scales);

}  // namespace halfbyte::cuda
