// 4-bit and 8-bit weights times integer activations. A panel of 16 rows needs no horizontal sum: lane r is row r.
//
// Few rows of activations (decoding): every code is read once, unpacked in registers and multiplied at once; the speed of
// memory is the goal. Many rows: a piece of a panel is unpacked into a buffer that stays in the L1 cache, and tiles of
// kTileRows rows are multiplied with it; the speed of the multiplier is the goal.
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kPieceCols = 512;  // of a panel unpacked at a time: 16 KiB of int16
constexpr int64_t kChunkRows = 96;   // rows of activations that share an unpacked piece
constexpr int64_t kPrefetchBytes = 2048;

/// The levels of one panel, a group of 8 columns at a time.
struct Codes {
    Levels levels;
    static constexpr int64_t kGroupBytes = 64;
    void unpack(const uint8_t* p, Pairs* w) const { unpack_codes(p, levels, w); }
};
struct Bytes {
    static constexpr int64_t kGroupBytes = 128;
    void unpack(const uint8_t* p, Pairs* w) const {
        for (int j = 0; j < 4; j++) w[j] = widen_pairs(p + 32 * j);
    }
};

/// y[row r][16 * panel ..] from the accumulators of one row.
inline void finish(const Panels& w, const QuantizedRows& x, const LinearOutput& out, int64_t panel, int64_t r, F16 acc) {
    const int64_t n = panel * kPanelRows, count = min_of(kPanelRows, w.rows - n);
    acc = mul(acc, load16(w.row_scale + n));
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

/// kRows rows of activations from r0 on; codes straight from memory.
template <int kRows, class Reader>
inline void direct(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t panel,
                   int64_t r0) {
    const int64_t blocks = w.cols / w.block, groups = w.block / kGroupCols;
    const uint8_t* codes = w.levels + panel * (w.cols / kGroupCols) * Reader::kGroupBytes;
    const int16_t* scales = w.scales + panel * blocks * kPanelRows;
    const int16_t* offsets = w.offsets == nullptr ? nullptr : w.offsets + panel * blocks * kPanelRows;
    const int16_t* values[kRows];
    F16 acc[kRows];
    for (int r = 0; r < kRows; r++) values[r] = x.values + (r0 + r) * x.stride, acc[r] = zero16();
    for (int64_t b = 0; b < blocks; b++) {
        I16 sum[kRows];
        for (int r = 0; r < kRows; r++) sum[r] = zero_i();
        for (int64_t g = 0; g < groups; g++, codes += Reader::kGroupBytes) {
            for (int64_t line = 0; line < Reader::kGroupBytes; line += 64) prefetch(codes + kPrefetchBytes + line);
            Pairs pairs[4];
            reader.unpack(codes, pairs);
            for (int r = 0; r < kRows; r++) {
                for (int j = 0; j < 4; j++) sum[r] = dot(sum[r], pairs[j], broadcast_pair(values[r] + 2 * j));
                values[r] += kGroupCols;
            }
        }
        const F16 scale = load_i16x16(scales + b * kPanelRows);
        for (int r = 0; r < kRows; r++)
            acc[r] = fma(to_float(sum[r]), mul(scale, set(x.scales[(r0 + r) * x.blocks + b])), acc[r]);
        if (offsets != nullptr) {
            const F16 offset = mul(load_i16x16(offsets + b * kPanelRows), load16(w.row_offset_ratio + panel * kPanelRows));
            for (int r = 0; r < kRows; r++) acc[r] = fma(offset, set(x.sums[(r0 + r) * x.blocks + b]), acc[r]);
        }
    }
    for (int r = 0; r < kRows; r++) finish(w, x, out, panel, r0 + r, acc[r]);
}

/// One block of an unpacked panel times kRows rows: sum[r] = 16 integer dot products.
template <int kRows>
inline void dot_block(const int16_t* piece, int64_t block, const int16_t* values, int64_t stride, I16* sum) {
    for (int r = 0; r < kRows; r++) sum[r] = zero_i();
    for (int64_t k = 0; k < block; k += 2, piece += 2 * kPanelRows) {
        const Pairs pairs = load_pairs(piece);
        for (int r = 0; r < kRows; r++) sum[r] = dot(sum[r], pairs, broadcast_pair(values + r * stride + k));
    }
}

/// acc [kRows][16] += the blocks [b0, b1) of an unpacked panel times rows r0 ...
template <int kRows>
void tile(const Panels& w, const QuantizedRows& x, int64_t panel, const int16_t* piece, int64_t b0, int64_t b1, int64_t r0,
          float* acc) {
    const int64_t blocks = w.cols / w.block;
    for (int64_t b = b0; b < b1; b++, piece += w.block * kPanelRows) {
        I16 sum[kRows];
        dot_block<kRows>(piece, w.block, x.values + r0 * x.stride + b * w.block, x.stride, sum);
        const int64_t at = (panel * blocks + b) * kPanelRows;
        const F16 scale = load_i16x16(w.scales + at);
        if (w.offsets == nullptr) {
            for (int r = 0; r < kRows; r++) {
                float* a = acc + r * kPanelRows;
                store16(a, fma(to_float(sum[r]), mul(scale, set(x.scales[(r0 + r) * x.blocks + b])), load16(a)));
            }
            continue;
        }
        const F16 offset = mul(load_i16x16(w.offsets + at), load16(w.row_offset_ratio + panel * kPanelRows));
        for (int r = 0; r < kRows; r++) {
            float* a = acc + r * kPanelRows;
            const F16 onto = fma(offset, set(x.sums[(r0 + r) * x.blocks + b]), load16(a));
            store16(a, fma(to_float(sum[r]), mul(scale, set(x.scales[(r0 + r) * x.blocks + b])), onto));
        }
    }
}

using Tile = void (*)(const Panels&, const QuantizedRows&, int64_t, const int16_t*, int64_t, int64_t, int64_t, float*);
template <int... kSizes>
struct Sizes {};
template <int kCount, int... kRest>
struct UpTo : UpTo<kCount - 1, kCount, kRest...> {};
template <int... kRest>
struct UpTo<0, kRest...> {
    using type = Sizes<kRest...>;
};
template <int... kSizes>
inline Tile choose_tile(int64_t rows, Sizes<kSizes...>) {
    static constexpr Tile kTiles[] = {tile<kSizes>...};
    return kTiles[rows - 1];
}

template <class Reader>
void many_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
               int64_t last) {
    alignas(64) int16_t piece[kPieceCols * kPanelRows];
    alignas(64) float acc[kChunkRows * kPanelRows];
    const int64_t blocks = w.cols / w.block, piece_blocks = kPieceCols / w.block, groups = w.block / kGroupCols;
    for (int64_t chunk = 0; chunk < x.count; chunk += kChunkRows) {
        const int64_t rows = min_of(kChunkRows, x.count - chunk);
        const int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // of as equal a size as can be
        for (int64_t panel = first; panel < last; panel++) {
            for (int64_t i = 0; i < rows * kPanelRows; i++) acc[i] = 0;
            const uint8_t* codes = w.levels + panel * (w.cols / kGroupCols) * Reader::kGroupBytes;
            for (int64_t b0 = 0; b0 < blocks; b0 += piece_blocks) {
                const int64_t b1 = min_of(blocks, b0 + piece_blocks);
                for (int64_t g = 0; g < (b1 - b0) * groups; g++, codes += Reader::kGroupBytes) {
                    Pairs pairs[4];
                    reader.unpack(codes, pairs);
                    for (int j = 0; j < 4; j++) store_pairs(piece + (4 * g + j) * 2 * kPanelRows, pairs[j]);
                }
                for (int64_t t = 0; t < tiles; t++) {
                    const int64_t r0 = rows * t / tiles, r1 = rows * (t + 1) / tiles;
                    choose_tile(r1 - r0, typename UpTo<kTileRows>::type{})(w, x, panel, piece, b0, b1, chunk + r0,
                                                                           acc + r0 * kPanelRows);
                }
            }
            for (int64_t r = 0; r < rows; r++) finish(w, x, out, panel, chunk + r, load16(acc + r * kPanelRows));
        }
    }
}

template <int kRows, class Reader>
void few_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last) {
    if constexpr (kRows > 1)
        if (x.count < kRows) return few_rows<kRows - 1>(w, reader, x, out, first, last);
    for (int64_t panel = first; panel < last; panel++) direct<kRows>(w, reader, x, out, panel, 0);
}

template <class Reader>
void any_rows(const Panels& w, const Reader& reader, const QuantizedRows& x, const LinearOutput& out, int64_t first,
              int64_t last) {
    if (x.count <= kDirectRows) return few_rows<kDirectRows>(w, reader, x, out, first, last);
    many_rows(w, reader, x, out, first, last);
}

}  // namespace

void panel_linear(const Panels& weight, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last) {
    if (x.count == 0) return;
    if (weight.table == nullptr) return any_rows(weight, Bytes{}, x, out, first, last);
    any_rows(weight, Codes{load_levels(weight.table)}, x, out, first, last);
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
