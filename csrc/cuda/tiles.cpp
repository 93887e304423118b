#include "cuda/tiles.h"

#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"
#include "storage/storage.h"

namespace halfbyte::cuda {

namespace {

constexpr int64_t kRows = kTileRows, kCols = kTileCols, kStep = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- one tile -----------------------------------------------------------------------------------------------------
// What a lane of a tile needs of 16 columns are four pairs of neighbouring elements: columns 2 q and 2 q + 8 of rows g and g + 8.
// With a pair as the unit (a byte of codes, 16 bits of int8, ...) a step of a row is eight units, and lane 4 g + q gets units q
// and q + 4 of both rows: an interleaving.

using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Words4 = uint32_t __attribute__((vector_size(16)));

Bytes16 load16(const uint8_t* from) {
    Bytes16 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

/// rows: 16 rows of 32 bytes, the first of a pair in the low nibble (kSwap: in the high one, as bitsandbytes has it).
template <bool kSwap>
void pack_codebook4(const uint8_t* rows, int64_t stride, uint8_t* out) {
    for (int g = 0; g < 8; g++) {
        Words4 step[4];  // of lanes 4 g .. 4 g + 3
        for (int half = 0; half < 2; half++) {
            Bytes16 low = load16(rows + g * stride + 16 * half), high = load16(rows + (g + 8) * stride + 16 * half);
            if constexpr (kSwap) {
                low = (low >> 4) | (low << 4);
                high = (high >> 4) | (high << 4);
            }
            // Bytes 0 4 1 5 2 6 3 7 of a step, then pairs of them of both rows in turn.
            const auto fold = [](Bytes16 v) {
                const Bytes16 shifted =
                    __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15, 12, 13, 14, 15);
                const Bytes16 first =
                    __builtin_shufflevector(v, shifted, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                const Bytes16 second =
                    __builtin_shufflevector(v, shifted, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                return __builtin_shufflevector(first, second, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
            };
            using Pairs8 = uint16_t __attribute__((vector_size(16)));
            const auto a = Pairs8(fold(low)), b = Pairs8(fold(high));
            step[2 * half] = Words4(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
            step[2 * half + 1] = Words4(__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
        }
        // From [step][lane] to [lane][step].
        const Words4 a = __builtin_shufflevector(step[0], step[1], 0, 4, 1, 5),
                     b = __builtin_shufflevector(step[0], step[1], 2, 6, 3, 7);
        const Words4 c = __builtin_shufflevector(step[2], step[3], 0, 4, 1, 5),
                     d = __builtin_shufflevector(step[2], step[3], 2, 6, 3, 7);
        const Words4 lanes[4] = {__builtin_shufflevector(a, c, 0, 1, 4, 5), __builtin_shufflevector(a, c, 2, 3, 6, 7),
                                 __builtin_shufflevector(b, d, 0, 1, 4, 5), __builtin_shufflevector(b, d, 2, 3, 6, 7)};
        std::memcpy(out + 64 * g, lanes, sizeof lanes);
    }
}

/// rows: 16 rows of 64 elements of sizeof(Pair) / 2 bytes.
template <class Pair>
void pack_pairs(const uint8_t* rows, int64_t stride, uint8_t* out) {
    for (int g = 0; g < 8; g++)
        for (int s = 0; s < 4; s++) {
            Pair low[8], high[8];
            std::memcpy(low, rows + g * stride + s * int(sizeof low), sizeof low);
            std::memcpy(high, rows + (g + 8) * stride + s * int(sizeof high), sizeof high);
            for (int q = 0; q < 4; q++) {
                const Pair four[4] = {low[q], low[q + 4], high[q], high[q + 4]};
                const int lane = 4 * g + q;
                if constexpr (sizeof(Pair) == 2) {  // int8: [half][lane][2 steps]
                    std::memcpy(out + ((s / 2 * 32 + lane) * 2 + s % 2) * 8, four, 8);
                } else if constexpr (sizeof(Pair) == 4) {  // f16, bf16: [step][lane]
                    std::memcpy(out + (s * 32 + lane) * 16, four, 16);
                } else {  // f32: [step][rows g or g + 8][lane]
                    std::memcpy(out + (s * 2 * 32 + lane) * 16, four, 16);
                    std::memcpy(out + ((s * 2 + 1) * 32 + lane) * 16, four + 2, 16);
                }
            }
        }
}

using PackTile = void (*)(const uint8_t* rows, int64_t stride, uint8_t* out);

size_t tile_bytes(Format format) {
    switch (format) {
        case Format::codebook4: return 512;
        case Format::int8: return 1024;
        case Format::f16:
        case Format::bf16: return 2048;
        case Format::f32: return 4096;
    }
    return 0;
}

/// A row tile out of `count` <= 16 rows, `stride` bytes apart, of which `row_bytes` count.
void pack_rows(PackTile pack, const uint8_t* rows, int64_t count, int64_t stride, int64_t row_bytes, int64_t out_bytes,
               int64_t col_tiles, uint8_t* out) {
    const int64_t part = out_bytes / kRows;  // bytes of a row in a tile
    alignas(16) uint8_t padded[4096];
    for (int64_t t = 0; t < col_tiles; t++, out += out_bytes) {
        const int64_t at = t * part;
        if (count == kRows && at + part <= row_bytes) {
            pack(rows + at, stride, out);
            continue;
        }
        std::memset(padded, 0, size_t(out_bytes));
        for (int64_t r = 0; r < count; r++)
            std::memcpy(padded + r * part, rows + r * stride + at, size_t(std::min(part, row_bytes - at)));
        pack(padded, part, out);
    }
}

/// [count][blocks] -> [blocks][16], filled up with zeros.
template <class T>
void turn(const T* from, int64_t count, int64_t blocks, T* to) {
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t r = 0; r < kRows; r++) to[b * kRows + r] = r < count ? from[r * blocks + b] : T(0);
}

// --- the storages -------------------------------------------------------------------------------------------------

bool is_bnb4(const Weight& weight) { return weight.storage == &nf4_storage() || weight.storage == &fp4_storage(); }

/// Scales of equal blocks of which a row has a whole number, and whose columns a shift finds.
bool plan_blocks(const Weight& weight, TiledPlanes& plan) {
    const int64_t block = weight.block_size;
    if (block < 1 || weight.cols % block != 0) return false;
    const bool shiftable = block >= kStep && std::has_single_bit(uint64_t(block));
    if (!shiftable && block != weight.cols) return false;
    plan.blocks = int32_t(weight.cols / block);
    plan.block_shift = shiftable ? std::countr_zero(uint64_t(block)) : 31;
    plan.tile_scales = size_t(plan.blocks) * kRows * sizeof(float);
    return true;
}

void plan_codebook4(const Weight& weight, TiledPlanes& plan) {
    const auto& storage = static_cast<const Codebook4&>(*weight.storage);
    if (!plan_blocks(weight, plan)) return;
    plan.format = Format::codebook4;
    const auto levels = storage.levels(weight);
    std::copy(levels.begin(), levels.end(), plan.levels.begin());
    if (storage.has_offsets()) plan.tile_offsets = plan.tile_scales;
    const bool panels = is_bnb4_panels(weight);
    if ((is_bnb4(weight) || panels) && weight.nested_block_size != 0) {
        plan.tile_scales = size_t(plan.blocks) * kRows;
        const Plane& nested = weight.planes[panels ? int(kBnb4PanelsNested) : int(kBnb4NestedAbsmax)];
        plan.nested_levels =
            panels ? weight.planes[kBnb4PanelsMaps].as<float>() + 16 : weight.planes[kBnb4NestedMap].as<float>();
        plan.nested_scales = nested.as<float>();
        plan.nested_count = int32_t(nested.bytes / sizeof(float));
        plan.nested_shift = std::countr_zero(unsigned(weight.nested_block_size));
        plan.nested_offset = weight.nested_offset;
    }
}

/// Two codes to a byte, the first in the low nibble; `bytes` of a row.
void join_codes(const uint8_t* codes, int64_t cols, uint8_t* out) {
    for (int64_t i = 0; i < cols / 2; i++) out[i] = uint8_t(codes[2 * i] | codes[2 * i + 1] << 4);
    if (cols % 2 != 0) out[cols / 2] = codes[cols - 1];
}

/// Scratch of one pack_row_tiles().
struct Scratch {
    std::vector<uint8_t> codes, rows;
    std::vector<float> scales, offsets, values;
};

struct RowTile {
    int64_t first, count;  ///< rows
    uint8_t* codes;
    void* scales;
    float* offsets;
};

void pack_bnb4(const Weight& weight, const TiledPlanes& plan, const RowTile& tile, Scratch&) {
    const int64_t row_bytes = weight.cols / 2;
    pack_rows(pack_codebook4<true>, weight.planes[kBnb4Codes].as<uint8_t>() + tile.first * row_bytes, tile.count, row_bytes,
              row_bytes, 512, plan.col_tiles, tile.codes);
    const int64_t at = tile.first * plan.blocks;
    if (plan.nested_levels != nullptr) {
        turn(weight.planes[kBnb4Absmax].as<uint8_t>() + at, tile.count, plan.blocks, static_cast<uint8_t*>(tile.scales));
        return;
    }
    turn(weight.planes[kBnb4Absmax].as<float>() + at, tile.count, plan.blocks, static_cast<float*>(tile.scales));
}

void pack_codes(const Weight& weight, const TiledPlanes& plan, const RowTile& tile, Scratch& scratch) {
    const auto& storage = static_cast<const Codebook4&>(*weight.storage);
    const int64_t row_bytes = ceil_div(weight.cols, 2);
    scratch.codes.resize(size_t(kRows * weight.cols));
    scratch.rows.resize(size_t(kRows * row_bytes));
    scratch.scales.resize(size_t(kRows) * size_t(plan.blocks));
    scratch.offsets.resize(scratch.scales.size());
    storage.unpack_rows(weight, tile.first, tile.count, scratch.codes.data(), scratch.scales.data(), scratch.offsets.data());
    for (int64_t r = 0; r < tile.count; r++)
        join_codes(scratch.codes.data() + r * weight.cols, weight.cols, scratch.rows.data() + r * row_bytes);
    pack_rows(pack_codebook4<false>, scratch.rows.data(), tile.count, row_bytes, row_bytes, 512, plan.col_tiles, tile.codes);
    if (plan.nested_levels != nullptr) {  // panels have the very same order
        const int64_t bytes = kRows * plan.blocks;
        auto* to = static_cast<uint8_t*>(tile.scales);
        std::memcpy(to, weight.planes[kBnb4PanelsScales].as<uint8_t>() + tile.first / kRows * bytes, size_t(bytes));
        for (int64_t i = 0; i < bytes; i++)
            if (i % kRows >= tile.count) to[i] = 0;
    } else {
        turn(scratch.scales.data(), tile.count, plan.blocks, static_cast<float*>(tile.scales));
    }
    if (plan.tile_offsets != 0) turn(scratch.offsets.data(), tile.count, plan.blocks, tile.offsets);
}

void pack_int8(const Weight& weight, const TiledPlanes& plan, const RowTile& tile, Scratch& scratch) {
    const auto& storage = static_cast<const Int8Blocks&>(*weight.storage);
    scratch.codes.resize(size_t(kRows * weight.cols));
    scratch.scales.resize(size_t(kRows) * size_t(plan.blocks));
    scratch.offsets.resize(scratch.scales.size());
    for (int64_t r = 0; r < tile.count; r++)
        storage.unpack_row(weight, tile.first + r, reinterpret_cast<int8_t*>(scratch.codes.data()) + r * weight.cols,
                           scratch.scales.data() + r * plan.blocks, scratch.offsets.data() + r * plan.blocks);
    pack_rows(pack_pairs<uint16_t>, scratch.codes.data(), tile.count, weight.cols, weight.cols, 1024, plan.col_tiles,
              tile.codes);
    turn(scratch.scales.data(), tile.count, plan.blocks, static_cast<float*>(tile.scales));
    if (plan.tile_offsets != 0) turn(scratch.offsets.data(), tile.count, plan.blocks, tile.offsets);
}

void pack_floats(const Weight& weight, const TiledPlanes& plan, const RowTile& tile, Scratch& scratch) {
    const bool in_place = weight.storage->kind() == StorageKind::floating;
    const int64_t row_bytes = weight.cols * (plan.format == Format::f32 ? 4 : 2);
    const uint8_t* rows = nullptr;
    if (in_place) {
        rows = weight.planes[0].as<uint8_t>() + tile.first * row_bytes;
    } else {
        scratch.values.resize(size_t(kRows * weight.cols));
        for (int64_t r = 0; r < tile.count; r++)
            weight.storage->decode_row(weight, tile.first + r, scratch.values.data() + r * weight.cols);
        rows = reinterpret_cast<const uint8_t*>(scratch.values.data());
    }
    pack_rows(plan.format == Format::f32 ? pack_pairs<uint64_t> : pack_pairs<uint32_t>, rows, tile.count, row_bytes,
              row_bytes, int64_t(tile_bytes(plan.format)), plan.col_tiles, tile.codes);
}

}  // namespace

TiledPlanes plan_tiles(const Weight& weight) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - kCols;
    if (weight.rows > kMost || weight.cols > kMost)
        fail(ErrorCode::unsupported, "a weight [", weight.rows, ", ", weight.cols,
             "] on a CUDA device: expected sides of at most ", kMost);
    TiledPlanes plan;
    plan.rows = int32_t(weight.rows);
    plan.cols = int32_t(weight.cols);
    plan.row_tiles = int32_t(ceil_div(weight.rows, kRows));
    plan.col_tiles = int32_t(ceil_div(weight.cols, kCols));
    switch (weight.storage->kind()) {
        case StorageKind::floating: {
            const DType dtype = static_cast<const FloatStorage&>(*weight.storage).dtype();
            plan.format = dtype == DType::f16 ? Format::f16 : dtype == DType::bf16 ? Format::bf16 : Format::f32;
            break;
        }
        case StorageKind::codebook4: plan_codebook4(weight, plan); break;
        case StorageKind::int8_blocks:
            if (plan_blocks(weight, plan)) {
                plan.format = Format::int8;
                if (static_cast<const Int8Blocks&>(*weight.storage).has_offsets()) plan.tile_offsets = plan.tile_scales;
            }
            break;
        case StorageKind::other: break;
    }
    plan.tile_codes = size_t(plan.col_tiles) * tile_bytes(plan.format);
    return plan;
}

void pack_row_tiles(const Weight& weight, const TiledPlanes& plan, int64_t first, int64_t last, void* codes, void* scales,
                    float* offsets) {
    Scratch scratch;
    for (int64_t t = first; t < last; t++) {
        const auto at = size_t(t - first);
        RowTile tile{};
        tile.first = t * kRows;
        tile.count = std::min(kRows, weight.rows - tile.first);
        tile.codes = static_cast<uint8_t*>(codes) + at * plan.tile_codes;
        if (plan.tile_scales != 0) tile.scales = static_cast<uint8_t*>(scales) + at * plan.tile_scales;
        if (plan.tile_offsets != 0) tile.offsets = offsets + at * (plan.tile_offsets / sizeof(float));
        switch (plan.format) {
            case Format::codebook4: (is_bnb4(weight) ? pack_bnb4 : pack_codes)(weight, plan, tile, scratch); break;
            case Format::int8: pack_int8(weight, plan, tile, scratch); break;
            default: pack_floats(weight, plan, tile, scratch);
        }
    }
}

TiledWeight tiled_weight(const TiledPlanes& plan, const void* codes, const void* scales, const float* offsets,
                         const float* levels, const float* nested_levels, const float* nested_scales) {
    TiledWeight out{};
    out.format = plan.format;
    out.rows = plan.rows;
    out.cols = plan.cols;
    out.row_tiles = plan.row_tiles;
    out.col_tiles = plan.col_tiles;
    out.blocks = plan.blocks;
    out.block_shift = plan.block_shift;
    out.codes = codes;
    out.scales = scales;
    out.offsets = offsets;
    out.levels = levels;
    out.nested_levels = nested_levels;
    out.nested_scales = nested_scales;
    out.nested_count = plan.nested_count;
    out.nested_shift = plan.nested_shift;
    out.nested_offset = plan.nested_offset;
    return out;
}

}  // namespace halfbyte::cuda
