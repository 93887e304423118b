// Weights in panels times integer activations. A panel of 16 rows needs no horizontal sum: lane r is row r.
//
// Few rows of activations (decoding): every level is read once, unpacked in registers and multiplied at once; the speed of
// memory is the goal. Many rows: the speed of the multiplier is the goal. A chunk of rows and a piece of their columns stay in the
// L2 cache while all panels pass by; a piece of kTilePanels panels is unpacked beside it, and tiles of kTileRows rows keep their
// sums in registers from the first column of the piece to the last.
#include "cpu/ops/panel_scales.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kChunkBytes = 768 * 1024;  // of the columns of a piece, in rows that are multiplied with it together
constexpr int64_t kLeastChunk = 96;          // rows; for fewer, unpacking a piece is dear
constexpr int64_t kShortCols = 256;          // of a piece for kMemoryRows: a little work for a little memory
constexpr int64_t kDirectCols = 512;  // whose scales are made ready at a time where rows are few: they stay in the L1 cache
constexpr int64_t kPrefetchBytes = 8192;
static_assert(kWholeTiles % kTileRows == 0);

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
    static I16 start(const int32_t*, int64_t) { return zero_i(); }
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
    static I16 start(const int32_t* starts, int64_t at) { return set_i(starts[at]); }
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

/// Adds what is there already and the bias to 16 sums of a row that has fewer columns left.
__attribute__((noinline)) void finish_part(const float* sums, int64_t count, const float* bias, bool onto, float* y) {
    for (int64_t i = 0; i < count; i++) y[i] = sums[i] + (bias != nullptr ? bias[i] : 0) + (onto ? y[i] : 0);
}

/// y[rows[r]][n ..] = acc[r] of kRows rows, in units of the levels; count: columns that are left. Rows from first_terms on are
/// added to what is there and get no bias.
template <int kRows>
inline __attribute__((always_inline)) void finish(const F16* acc, F unit, const int32_t* rows, const LinearOutput& out,
                                                  int64_t n, int64_t count, int64_t first_terms) {
    const float* const all_bias = out.bias == nullptr ? nullptr : out.bias + n;
    float* const y = out.y + n;
    const int64_t stride = out.stride;
    if (count < kPanelRows) {
        for (int r = 0; r < kRows; r++) {
            alignas(64) float sums[kPanelRows];
            store16(sums, mul(acc[r], unit));
            finish_part(sums, count, r < first_terms ? all_bias : nullptr, out.accumulate || r >= first_terms,
                        y + rows[r] * stride);
        }
        return;
    }
    const F16 bias = all_bias == nullptr ? zero16() : load16(all_bias);
    if (first_terms >= kRows && !out.accumulate) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) store16(y + rows[r] * stride, add(mul(acc[r], unit), bias));
        return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
        F16 sum = mul(acc[r], unit);
        if (r < first_terms) sum = add(sum, bias);
        if (out.accumulate || r >= first_terms) sum = add(sum, load16(y + rows[r] * stride));
        store16(y + rows[r] * stride, sum);
    }
}

/// acc[r] += the integer products of a block, scaled: by scale, of 16 rows of weights, and xs[r], of the rows of activations.
template <int kRows>
inline void add_scaled(const I16* sum, F16 scale, const float* xs, F16* acc) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = fma(to_float(sum[r]), mul(scale, set(xs[r])), acc[r]);
}

/// acc[r] += offset times the sum of the activations of a block. In units of the levels, as the products are.
template <int kRows>
inline void add_offsets(F16 offset, const float* x_sums, F16* acc) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) acc[r] = fma(offset, set(x_sums[r]), acc[r]);
}

/// kRows rows of activations, all there are; levels straight from memory.
template <int kRows, class Reader>
inline void direct(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t panel) {
    // A chain of dependent products is as slow as their latency (4 or 5 cycles): few rows get several sums each.
    constexpr int kChains = kRows >= 4 ? 1 : kRows >= 2 ? 2 : Reader::kVectors;
    const int64_t blocks = w.cols / w.block, groups = w.block / kGroupCols, piece_blocks = kDirectCols / w.block;
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
                sum[r][0] = Reader::start(x.starts, b * x.scale_stride + r);
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
            add_scaled<kRows>(total, load16(scales.scales() + at), x.scales + b * x.scale_stride, acc);
            if (scales.offsets() != nullptr)
                add_offsets<kRows>(mul(load16(scales.offsets() + at), inverse_unit), x.sums + b * x.scale_stride, acc);
        }
    }
    const int64_t n = panel * kPanelRows;
    finish<kRows>(acc, set(x.form == kInt8 ? w.unit8 : w.unit), x.rows, out, n, w.rows - n, x.main_count);
}

#ifndef HALFBYTE_STRIDED  // an instruction set may know better how to find the rows of a tile
struct Strided {
    const uint8_t* p;
    int64_t stride;
};
inline Strided strided(const uint8_t* p, int64_t stride) { return {p, stride}; }
#endif

/// sum[p][r] = one step of the products of row r from kRow on, kWithin bytes behind `offset`, with vector p.
template <class Reader, int kPanels, int kRows, int kWithin, int kRow = 0>
inline __attribute__((always_inline)) void step_rows(const typename Reader::Vector (&v)[kPanels], const Strided& rows,
                                                     int64_t offset, I16 (&sum)[kPanels][kRows]) {
    if constexpr (kRow < kRows) {
#ifdef HALFBYTE_STRIDED
        const auto four = broadcast4<kRow, kWithin>(rows, offset);
#else
        const auto four = Reader::four(rows.p + kRow * rows.stride + offset + kWithin);
#endif
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++) sum[p][kRow] = Reader::step(sum[p][kRow], v[p], four);
        step_rows<Reader, kPanels, kRows, kWithin, kRow + 1>(v, rows, offset, sum);
    }
}
/// The same for the vectors of a group from kVector on.
template <class Reader, int kPanels, int kRows, int kVector = 0>
inline __attribute__((always_inline)) void step_group(const uint8_t* const (&levels)[kPanels], const Strided& rows,
                                                      int64_t offset, I16 (&sum)[kPanels][kRows]) {
    if constexpr (kVector < Reader::kVectors) {
        typename Reader::Vector v[kPanels];
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++) v[p] = Reader::load(levels[p] + 64 * kVector);
        step_rows<Reader, kPanels, kRows, 4 * kVector>(v, rows, offset, sum);
        step_group<Reader, kPanels, kRows, kVector + 1>(levels, rows, offset, sum);
    }
}

/// A piece of kPanels panels, ready to be multiplied: `blocks` blocks of each.
template <int kPanels>
struct Piece {
    const uint8_t* levels[kPanels];  // vectors of 64 bytes in the order of the columns
    const float* scales[kPanels];    // [blocks][16]
    const float* offsets[kPanels];   // the same, or null
    int64_t blocks, groups;          // groups of a block
    F unit, inverse_unit;
    bool begins, ends;  // with the first column, with the last
};

/// y[row] (+)= panels times the first kRows rows of x, whose integers and blocks begin where the piece does. A piece that does not begin or end takes up or leaves its sums in carried
/// [kRows][kPanels][16], so that pieces change no result. count: columns of y that are left.
template <int kRows, int kPanels, class Reader>
void tile(const Piece<kPanels>& piece, const QuantizedRows& x, const LinearOutput& out, int64_t count, float* carried) {
    const uint8_t* levels[kPanels];
    for (int p = 0; p < kPanels; p++) levels[p] = piece.levels[p];
    const Strided rows = strided(x.values, x.stride);
    const int64_t blocks = piece.blocks, groups = piece.groups;
    F16 acc[kPanels][kRows];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) acc[p][r] = zero16();
    if (!piece.begins)
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) acc[p][r] = load16(carried + (r * kPanels + p) * kPanelRows);
    const bool with_offsets = piece.offsets[0] != nullptr;
    int64_t offset = 0;  // of the group in a row, in bytes
    for (int64_t b = 0; b < blocks; b++) {
        I16 sum[kPanels][kRows];
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) sum[p][r] = Reader::start(x.starts, b * x.scale_stride + r);
        for (int64_t g = 0; g < groups; g++, offset += 4 * Reader::kVectors) {
            step_group<Reader, kPanels, kRows>(levels, rows, offset, sum);
            for (int p = 0; p < kPanels; p++) levels[p] += 64 * Reader::kVectors;
        }
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
            add_scaled<kRows>(sum[p], load16(piece.scales[p] + b * kPanelRows), x.scales + b * x.scale_stride, acc[p]);
        if (with_offsets)
#pragma GCC unroll 2
            for (int p = 0; p < kPanels; p++)
                add_offsets<kRows>(mul(load16(piece.offsets[p] + b * kPanelRows), piece.inverse_unit),
                                   x.sums + b * x.scale_stride, acc[p]);
    }
    if (!piece.ends) {
#pragma GCC unroll 2
        for (int p = 0; p < kPanels; p++)
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) store16(carried + (r * kPanels + p) * kPanelRows, acc[p][r]);
        return;
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; p++)
        finish<kRows>(acc[p], piece.unit, x.rows, out, p * kPanelRows, count - p * kPanelRows, x.main_count);
}

template <int... kSizes>
struct Sizes {};
template <int kCount, int... kRest>
struct UpTo : UpTo<kCount - 1, kCount, kRest...> {};
template <int... kRest>
struct UpTo<0, kRest...> {
    using type = Sizes<kRest...>;
};
template <int kPanels>
using Tile = void (*)(const Piece<kPanels>&, const QuantizedRows&, const LinearOutput&, int64_t, float*);
template <class Reader, int kPanels, int... kSizes>
inline Tile<kPanels> choose_tile(int64_t rows, Sizes<kSizes...>) {
    static constexpr Tile<kPanels> kTiles[] = {tile<kSizes, kPanels, Reader>...};
    return kTiles[rows - 1];
}

/// Rows [chunk, chunk + rows) times the blocks [b0, b1) of kPanels panels from `panel` on. unpacked: kUnpackedBytes. ahead:
/// bytes from the levels of this piece to those of the next one. carried: [rows][kPanels][16].
template <int kPanels, class Reader>
void panels_times_chunk(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& output,
                        int64_t panel, int64_t b0, int64_t b1, int64_t chunk, int64_t rows, int64_t ahead, uint8_t* unpacked,
                        float* carried) {
    const int64_t groups = w.block / kGroupCols, bytes = (b1 - b0) * groups * Reader::kGroupBytes;
    const int64_t panel_bytes = w.cols / kGroupCols * Reader::kGroupBytes;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // of as equal a size as can be
    const bool few = !Reader::kInPlace && rows <= kMemoryRows;
    const float unit = x.form == kInt8 ? w.unit8 : w.unit;
    PanelScales scales[kPanels];
    Piece<kPanels> piece;
    const uint8_t* next[kPanels];
    piece.begins = b0 == 0, piece.ends = b1 == w.cols / w.block;
    piece.blocks = b1 - b0, piece.groups = groups, piece.unit = set(unit), piece.inverse_unit = set(1.0f / unit);
    for (int p = 0; p < kPanels; p++) {
        scales[p].begin(w, panel + p, kPanels);
        scales[p].decode(b0, b1);
        piece.scales[p] = scales[p].scales(), piece.offsets[p] = scales[p].offsets();
        const uint8_t* levels = w.levels + (panel + p) * panel_bytes + b0 * groups * Reader::kGroupBytes;
        piece.levels[p] = levels, next[p] = levels + ahead;
        if constexpr (!Reader::kInPlace) {
            piece.levels[p] = unpacked;
            for (int64_t g = 0; g < (b1 - b0) * groups; g++, levels += Reader::kGroupBytes) {
                if (few)
                    for (int64_t line = 0; line < Reader::kGroupBytes; line += 64) prefetch(levels + ahead + line);
                typename Reader::Vector vectors[Reader::kVectors];
                reader.unpack(levels, vectors);
                for (int j = 0; j < Reader::kVectors; j++, unpacked += 64) Reader::store(unpacked, vectors[j]);
            }
        }
    }
    const int64_t n = panel * kPanelRows;
    LinearOutput out = output;
    out.y += n, out.bias = output.bias == nullptr ? nullptr : output.bias + n;
    const int64_t least = rows / tiles, larger = rows % tiles;  // the first ones have a row more
    const int64_t lines = few ? 0 : (bytes / 64 + tiles - 1) / tiles;
    int64_t row = chunk;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t count = least + (t < larger), at = b0 * x.scale_stride + row;
        // What the next panels need comes nearer while these are multiplied: so much at once would be waited for.
        for (int p = 0; p < kPanels; p++)
            for (int64_t i = lines * t; i < lines * (t + 1); i++) prefetch_far(next[p] + i * 64);
        // The output arrives while the products are made: waiting for it afterwards cost a tenth of the time.
        for (int64_t r = row; r < row + count && piece.ends; r++)
            for (int p = 0; p < kPanels; p++) prefetch_write(out.y + x.rows[r] * out.stride + p * kPanelRows);
        QuantizedRows from = x;
        from.values += row * x.stride + b0 * groups * Reader::kVectors * 4;
        from.scales += at, from.sums += at, from.starts += at, from.rows += row;
        from.count = count, from.main_count -= row;
        choose_tile<Reader, kPanels>(count, typename UpTo<kTileRows>::type{})(piece, from, out, w.rows - n, carried);
        carried += count * kPanels * kPanelRows;
        row += count;
    }
}

/// Chunk after chunk: second terms come last, and find what the first ones gave.
template <class Reader>
void many_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
               int64_t last, uint8_t* unpacked) {
    // [panels][rows of a chunk][16] of unfinished pieces
    auto* const sums = reinterpret_cast<float*>(unpacked + kUnpackedBytes);
    // Chunks and pieces of as equal a size as can be: a few rows left over would be as dear as a whole chunk. Chunks are whole
    // tiles but for the last.
    const int64_t blocks = w.cols / w.block, bytes = Reader::kVectors == 4 ? 2 : 1;  // of a column
    const int64_t most_cols = x.count <= kMemoryRows ? kShortCols : kPieceCols / bytes;
    const int64_t most = max_of(1, most_cols / w.block), pieces = (blocks + most - 1) / most;
    const int64_t most_rows = max_of(kLeastChunk, kChunkBytes * pieces / (w.cols * bytes));
    const int64_t chunks = (x.count + most_rows - 1) / most_rows;
    const int64_t chunk_rows = ((x.count + chunks - 1) / chunks + kTileRows - 1) / kTileRows * kTileRows;
    const int64_t block_bytes = w.block / kGroupCols * Reader::kGroupBytes, panel_bytes = blocks * block_bytes;
    const auto begin_of = [&](int64_t piece) { return blocks * piece / pieces; };
    const auto run = [&](int64_t panel, int64_t piece, int64_t chunk, int64_t ahead, float* carried) {
        const int64_t rows = min_of(chunk_rows, x.count - chunk), b0 = begin_of(piece), b1 = begin_of(piece + 1);
        if (panel + kTilePanels <= last)
            panels_times_chunk<kTilePanels>(w, reader, x, out, panel, b0, b1, chunk, rows, ahead, unpacked, carried);
        else
            for (int64_t p = panel; p < last; p++, carried += rows * kPanelRows)
                panels_times_chunk<1>(w, reader, x, out, p, b0, b1, chunk, rows, ahead, unpacked, carried);
    };
    if (x.count <= kMemoryRows) {  // one chunk; levels in the order of memory, a little at a time
        alignas(64) float carried[kMemoryRows * kTilePanels * kPanelRows];
        for (int64_t panel = first; panel < last; panel += kTilePanels)
            for (int64_t piece = 0; piece < pieces; piece++) {
                const bool ends = piece + 1 == pieces;
                run(panel, piece, 0,
                    ends ? kTilePanels * panel_bytes - begin_of(piece) * block_bytes
                         : (begin_of(piece + 1) - begin_of(piece)) * block_bytes,
                    carried);
            }
        return;
    }
    for (int64_t chunk = 0; chunk < x.count; chunk += chunk_rows)
        for (int64_t piece = 0; piece < pieces; piece++)
            for (int64_t panel = first; panel < last; panel += kTilePanels)
                run(panel, piece, chunk, kTilePanels * panel_bytes, sums + (panel - first) * chunk_rows * kPanelRows);
}

template <int kRows, class Reader>
void few_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last) {
    if constexpr (kRows > 1)
        if (x.count < kRows) return few_rows<kRows - 1>(w, reader, x, out, first, last);
    // direct() asks for what lies kPrefetchBytes ahead; this is what lies before.
    const uint8_t* levels = w.levels + first * (w.cols / kGroupCols) * Reader::kGroupBytes;
    for (int64_t i = 0; i < kPrefetchBytes; i += 64) prefetch(levels + i);
    for (int64_t panel = first; panel < last; panel++) direct<kRows>(w, reader, x, out, panel);
}

template <class Reader>
void any_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last, uint8_t* unpacked) {
    if (x.count <= kDirectRows) return few_rows<kDirectRows>(w, reader, x, out, first, last);
    many_rows(w, reader, x, out, first, last, unpacked);
}

}  // namespace

void panel_linear(const Panels& w, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last,
                  void* scratch) {
    if (x.count == 0) return;
    auto* const unpacked = static_cast<uint8_t*>(scratch);
#if HALFBYTE_QUADS
    if (x.form == kInt8) {
        if (w.level_form == LevelForm::bytes) return any_rows(w, ByteQuads{}, x, out, first, last, unpacked);
        return any_rows(w, CodeQuads{{}, load_levels8(w.table8)}, x, out, first, last, unpacked);
    }
#endif
    if (w.level_form == LevelForm::bytes) return any_rows(w, BytePairs{}, x, out, first, last, unpacked);
    if (w.level_form == LevelForm::words) return any_rows(w, WordPairs{}, x, out, first, last, unpacked);
    any_rows(w, CodePairs{{}, load_levels(w.table)}, x, out, first, last, unpacked);
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
