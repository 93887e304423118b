// Weights in panels times integer activations. A panel of 16 rows needs no horizontal sum: lane r is row r.
//
// Few rows of activations (decoding): every level is read once, unpacked in registers and multiplied at once; the speed of
// memory is the goal. Many rows: a piece of a panel is unpacked into a buffer that stays in the L1 cache, and tiles of
// kTileRows rows are multiplied with it; the speed of the multiplier is the goal.
#include "cpu/ops/panel_scales.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kChunkRows = 192;               // rows of activations that share an unpacked piece
constexpr int64_t kTileCols = 512 / kTilePanels;  // of a panel multiplied at a time: 16 KiB of int16 in all
constexpr int64_t kPrefetchBytes = 8192;

/// A piece of one panel, unpacked: vectors of 64 bytes in the order of the columns.
struct Piece {
    alignas(64) uint8_t levels[kTileCols * kPanelRows * 2];
};

// A reader takes a group of 8 columns x 16 rows of levels apart into kVectors vectors, each of which is multiplied by 4 bytes
// of activations: pairs of int16 (precision high) or quads of bytes (precision fast). kInPlace: the levels lie in memory as they
// are multiplied, and need no buffer.
struct Pairwise {
    using Vector = Pairs;
    static constexpr int kVectors = 4;
    static Pair four(const uint8_t* x) { return broadcast_pair(reinterpret_cast<const int16_t*>(x)); }
    static I16 step(I16 sum, const Pairs& w, Pair x) { return dot(sum, w, x); }
    static void store(uint8_t* p, const Pairs& w) { store_pairs(reinterpret_cast<int16_t*>(p), w); }
    static Pairs load(const uint8_t* p) { return load_pairs(reinterpret_cast<const int16_t*>(p)); }
    static I16 start(const QuantizedRows&, int64_t) { return zero_i(); }
};
struct CodePairs : Pairwise {
    Levels levels;
    static constexpr bool kInPlace = false;
    static constexpr int64_t kGroupBytes = 64;
    void unpack(const uint8_t* p, Pairs* w) const { unpack_codes(p, levels, w); }
};
struct BytePairs : Pairwise {
    static constexpr bool kInPlace = false;
    static constexpr int64_t kGroupBytes = 128;
    void unpack(const uint8_t* p, Pairs* w) const { unpack_bytes(p, w); }
};
struct WordPairs : Pairwise {
    static constexpr bool kInPlace = true;
    static constexpr int64_t kGroupBytes = 256;
    void unpack(const uint8_t* p, Pairs* w) const {
        for (int j = 0; j < 4; j++) w[j] = load(p + 64 * j);
    }
};
#if HALFBYTE_QUADS
struct Quadwise {
    using Vector = Quads;
    static constexpr int kVectors = 2;
    static Quad four(const uint8_t* x) { return broadcast_quad(x); }
    static I16 step(I16 sum, const Quads& w, Quad x) { return dot_quads(sum, w, x); }
    static void store(uint8_t* p, const Quads& w) { store_quads(p, w); }
    static Quads load(const uint8_t* p) { return load_quads(p); }
    static I16 start(const QuantizedRows& x, int64_t at) { return set_i(x.starts[at]); }
};
struct CodeQuads : Quadwise {
    Levels8 levels;
    static constexpr bool kInPlace = false;
    static constexpr int64_t kGroupBytes = 64;
    void unpack(const uint8_t* p, Quads* w) const { unpack_codes8(p, levels, w); }
};
struct ByteQuads : Quadwise {
    static constexpr bool kInPlace = true;
    static constexpr int64_t kGroupBytes = 128;
    void unpack(const uint8_t* p, Quads* w) const { w[0] = load_quads(p), w[1] = load_quads(p + 64); }
};
#endif

/// y[row r][16 * panel ..] from the accumulators of one row.
inline void finish(const Panels& w, const QuantizedRows& x, const LinearOutput& out, int64_t panel, int64_t r, F16 acc) {
    const int64_t n = panel * kPanelRows, count = min_of(kPanelRows, w.rows - n);
    acc = mul(acc, set(x.form == kInt8 ? w.unit8 : w.unit));
    float* y = out.y + x.rows[r] * out.stride + n;
    const bool first_term = r < x.main_count;
    const bool onto = out.accumulate || !first_term;
    const float* bias = first_term ? out.bias : nullptr;
    if (count == kPanelRows) {
        if (bias != nullptr) acc = add(acc, load16(bias + n));
        if (onto) acc = add(acc, load16(y));
        store16(y, acc);
        return;
    }
    alignas(64) float lanes[kPanelRows];
    store16(lanes, acc);
    for (int64_t i = 0; i < count; i++) y[i] = lanes[i] + (bias != nullptr ? bias[n + i] : 0) + (onto ? y[i] : 0);
}

/// acc[r] += the integer products of block b, scaled. scale: of 16 rows; inverse_unit: offsets are added to levels * scale.
template <int kRows>
inline void scale_block(const QuantizedRows& x, int64_t b, int64_t r0, const I16* sum, const float* scales,
                        const float* offsets, F inverse_unit, F16* acc) {
    const F16 scale = load16(scales);
    const float* xs = x.scales + b * x.scale_stride + r0;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = fma(to_float(sum[r]), mul(scale, set(xs[r])), acc[r]);
    if (offsets == nullptr) return;
    const F16 offset = mul(load16(offsets), inverse_unit);
    const float* sums = x.sums + b * x.scale_stride + r0;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = fma(offset, set(sums[r]), acc[r]);
}

/// kRows rows of activations, all there are; levels straight from memory.
template <int kRows, class Reader>
inline void direct(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t panel) {
    // A chain of dependent products is as slow as their latency (4 or 5 cycles): few rows get several sums each.
    constexpr int kChains = kRows >= 4 ? 1 : kRows >= 2 ? 2 : Reader::kVectors;
    const int64_t blocks = w.cols / w.block, groups = w.block / kGroupCols, piece_blocks = kPieceCols / w.block;
    const uint8_t* levels = w.levels + panel * (w.cols / kGroupCols) * Reader::kGroupBytes;
    const F inverse_unit = set(1.0f / (x.form == kInt8 ? w.unit8 : w.unit));
    PanelScales scales;
    scales.begin(w, panel, 1);
    const uint8_t* values = x.values;
    F16 acc[kRows];
    for (int r = 0; r < kRows; r++) acc[r] = zero16();
    for (int64_t b0 = 0; b0 < blocks; b0 += piece_blocks) {
        const int64_t b1 = min_of(blocks, b0 + piece_blocks);
        scales.decode(b0, b1);
        for (int64_t b = b0; b < b1; b++) {
            I16 sum[kRows][kChains];
            for (int r = 0; r < kRows; r++) {
                sum[r][0] = Reader::start(x, b * x.scale_stride + r);
                for (int c = 1; c < kChains; c++) sum[r][c] = zero_i();
            }
            for (int64_t g = 0; g < groups; g++, levels += Reader::kGroupBytes, values += 4 * Reader::kVectors) {
                for (int64_t line = 0; line < Reader::kGroupBytes; line += 64) prefetch(levels + kPrefetchBytes + line);
                typename Reader::Vector vectors[Reader::kVectors];
                reader.unpack(levels, vectors);
#pragma GCC unroll 16
                for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
                    for (int j = 0; j < Reader::kVectors; j++)
                        sum[r][j % kChains] =
                            Reader::step(sum[r][j % kChains], vectors[j], Reader::four(values + r * x.stride + 4 * j));
            }
            I16 total[kRows];
            for (int r = 0; r < kRows; r++) {
                total[r] = sum[r][0];
                for (int c = 1; c < kChains; c++) total[r] = add_i(total[r], sum[r][c]);
            }
            const int64_t at = (b - b0) * kPanelRows;
            scale_block<kRows>(x, b, 0, total, scales.scales() + at,
                               scales.offsets() == nullptr ? nullptr : scales.offsets() + at, inverse_unit, acc);
        }
    }
    for (int r = 0; r < kRows; r++) finish(w, x, out, panel, r, acc[r]);
}

/// kPanels unpacked panels times kRows rows over the blocks [b0, b1): sums [kRows][kPanels][16] += the scaled products.
/// values: of the first row, at block b0.
template <int kRows, int kPanels, class Reader>
void tile(const QuantizedRows& x, const PanelScales* scales, const uint8_t* const* pieces, int64_t block, F inverse_unit,
          int64_t b0, int64_t b1, int64_t r0, const uint8_t* values, float* sums) {
    const uint8_t* piece[kPanels];
    for (int p = 0; p < kPanels; p++) piece[p] = pieces[p];
    const int64_t stride = x.stride;
    F16 acc[kPanels][kRows];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) acc[p][r] = load16(sums + (r * kPanels + p) * kPanelRows);
    for (int64_t b = b0; b < b1; b++) {
        I16 sum[kPanels][kRows];
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) sum[p][r] = Reader::start(x, b * x.scale_stride + r0 + r);
        for (int64_t g = 0; g < block / kGroupCols; g++, values += 4 * Reader::kVectors) {
#pragma GCC unroll 4
            for (int j = 0; j < Reader::kVectors; j++) {
                typename Reader::Vector v[kPanels];
#pragma GCC unroll 2
                for (int p = 0; p < kPanels; p++) v[p] = Reader::load(piece[p] + 64 * j);
#pragma GCC unroll 16
                for (int r = 0; r < kRows; r++) {
                    const auto four = Reader::four(values + r * stride + 4 * j);
#pragma GCC unroll 2
                    for (int p = 0; p < kPanels; p++) sum[p][r] = Reader::step(sum[p][r], v[p], four);
                }
            }
            for (int p = 0; p < kPanels; p++) piece[p] += 64 * Reader::kVectors;
        }
        const int64_t at = (b - b0) * kPanelRows;
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
            scale_block<kRows>(x, b, r0, sum[p], scales[p].scales() + at,
                               scales[p].offsets() == nullptr ? nullptr : scales[p].offsets() + at, inverse_unit, acc[p]);
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) store16(sums + (r * kPanels + p) * kPanelRows, acc[p][r]);
}

template <int... kSizes>
struct Sizes {};
template <int kCount, int... kRest>
struct UpTo : UpTo<kCount - 1, kCount, kRest...> {};
template <int... kRest>
struct UpTo<0, kRest...> {
    using type = Sizes<kRest...>;
};
using Tile = void (*)(const QuantizedRows&, const PanelScales*, const uint8_t* const*, int64_t, F, int64_t, int64_t, int64_t,
                      const uint8_t*, float*);
template <class Reader, int kPanels, int... kSizes>
inline Tile choose_tile(int64_t rows, Sizes<kSizes...>) {
    static constexpr Tile kTiles[] = {tile<kSizes, kPanels, Reader>...};
    return kTiles[rows - 1];
}

/// kPanels panels from `panel` on times the rows [chunk, chunk + rows).
template <int kPanels, class Reader>
void panels_times_chunk(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out,
                        int64_t panel, int64_t chunk, int64_t rows) {
    Piece unpacked[Reader::kInPlace ? 1 : kPanels];
    const uint8_t* pieces[kPanels];
    alignas(64) float acc[kChunkRows * kPanels * kPanelRows];  // [rows][kPanels][16]
    const int64_t blocks = w.cols / w.block, piece_blocks = kTileCols / w.block, groups = w.block / kGroupCols;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // of as equal a size as can be
    const F inverse_unit = set(1.0f / (x.form == kInt8 ? w.unit8 : w.unit));
    const int64_t panel_bytes = w.cols / kGroupCols * Reader::kGroupBytes;
    PanelScales scales[kPanels];
    for (int p = 0; p < kPanels; p++) scales[p].begin(w, panel + p, kPanels);
    for (int64_t i = 0; i < rows * kPanels * kPanelRows; i++) acc[i] = 0;
    for (int64_t b0 = 0; b0 < blocks; b0 += piece_blocks) {
        const int64_t b1 = min_of(blocks, b0 + piece_blocks);
        for (int p = 0; p < kPanels; p++) {
            scales[p].decode(b0, b1);
            const uint8_t* levels = w.levels + (panel + p) * panel_bytes + b0 * groups * Reader::kGroupBytes;
            // What comes next arrives while the tiles are multiplied: the piece behind this one, or the panel of the next turn.
            const uint8_t* next = b1 < blocks ? levels + (b1 - b0) * groups * Reader::kGroupBytes
                                              : w.levels + (panel + p + kPanels) * panel_bytes;
            pieces[p] = levels;
            if constexpr (Reader::kInPlace) {
                for (int64_t i = 0; i < (b1 - b0) * groups * Reader::kGroupBytes; i += 64) prefetch(next + i);
            } else {
                uint8_t* to = unpacked[p].levels;
                pieces[p] = to;
                for (int64_t g = 0; g < (b1 - b0) * groups;
                     g++, levels += Reader::kGroupBytes, next += Reader::kGroupBytes) {
                    for (int64_t line = 0; line < Reader::kGroupBytes; line += 64) prefetch(next + line);
                    typename Reader::Vector vectors[Reader::kVectors];
                    reader.unpack(levels, vectors);
                    for (int j = 0; j < Reader::kVectors; j++, to += 64) Reader::store(to, vectors[j]);
                }
            }
        }
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t r0 = rows * t / tiles, r1 = rows * (t + 1) / tiles;
            const uint8_t* values = x.values + (chunk + r0) * x.stride + b0 * groups * Reader::kVectors * 4;
            float* sums = acc + r0 * kPanels * kPanelRows;
            // The output arrives while the last products are made: waiting for it afterwards cost a tenth of the time.
            if (b1 == blocks)
                for (int64_t r = r0; r < r1; r++)
                    for (int p = 0; p < kPanels; p++)
                        prefetch_write(out.y + x.rows[chunk + r] * out.stride + (panel + p) * kPanelRows);
            choose_tile<Reader, kPanels>(r1 - r0, typename UpTo<kTileRows>::type{})(x, scales, pieces, w.block, inverse_unit,
                                                                                    b0, b1, chunk + r0, values, sums);
            if (b1 < blocks) continue;
            for (int64_t r = r0; r < r1; r++)
                for (int p = 0; p < kPanels; p++, sums += kPanelRows) finish(w, x, out, panel + p, chunk + r, load16(sums));
        }
    }
}

template <class Reader>
void many_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
               int64_t last) {
    // Chunks of as equal a size as can be: a few rows left over would be as dear as a whole chunk.
    const int64_t chunks = (x.count + kChunkRows - 1) / kChunkRows;
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t begin = x.count * c / chunks, rows = x.count * (c + 1) / chunks - begin;
        int64_t panel = first;
        for (; panel + kTilePanels <= last; panel += kTilePanels)
            panels_times_chunk<kTilePanels>(w, reader, x, out, panel, begin, rows);
        for (; panel < last; panel++) panels_times_chunk<1>(w, reader, x, out, panel, begin, rows);
    }
}

template <int kRows, class Reader>
void few_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last) {
    if constexpr (kRows > 1)
        if (x.count < kRows) return few_rows<kRows - 1>(w, reader, x, out, first, last);
    for (int64_t panel = first; panel < last; panel++) direct<kRows>(w, reader, x, out, panel);
}

template <class Reader>
void any_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last) {
    if (x.count <= kDirectRows) return few_rows<kDirectRows>(w, reader, x, out, first, last);
    many_rows(w, reader, x, out, first, last);
}

}  // namespace

void panel_linear(const Panels& w, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last) {
    if (x.count == 0) return;
#if HALFBYTE_QUADS
    if (x.form == kInt8) {
        if (w.level_form == LevelForm::bytes) return any_rows(w, ByteQuads{}, x, out, first, last);
        return any_rows(w, CodeQuads{{}, load_levels8(w.table8)}, x, out, first, last);
    }
#endif
    if (w.level_form == LevelForm::bytes) return any_rows(w, BytePairs{}, x, out, first, last);
    if (w.level_form == LevelForm::words) return any_rows(w, WordPairs{}, x, out, first, last);
    any_rows(w, CodePairs{{}, load_levels(w.table)}, x, out, first, last);
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
