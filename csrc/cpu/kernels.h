// The functions that one instruction set provides. Raw pointers only: nothing here may instantiate a template that the
// linker could keep for every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace halfbyte::cpu {

/// Weight rows that are interleaved in a panel; also the width of a tile of outputs.
constexpr int kPanelRows = 16;
/// Columns of one group of levels: 16 rows x 8 columns of 4 bits are one line of 64 bytes.
constexpr int kGroupCols = 8;
/// Columns that are unpacked, and whose scales are made ready, at a time, at most: half as many where levels are int16.
constexpr int kPieceCols = 4096;
/// Bytes in which up to two panels are unpacked.
constexpr int64_t kUnpackedBytes = 2 * kPanelRows * kPieceCols;
/// Rows of whole tiles, for every instruction set.
constexpr int64_t kWholeTiles = 12;
/// Up to so many rows, the memory is as busy as the multiplier: panel_linear() takes a little at a time.
constexpr int64_t kMemoryRows = 48;
/// What panel_linear() needs beside its operands for so many rows (with second terms) and panels: that, and the sums of columns
/// that come in several pieces.
constexpr size_t panel_scratch(int64_t cols, int64_t rows, int64_t panels) {
    const bool in_pieces = rows > kMemoryRows && cols > kPieceCols / 2;
    const int64_t sums = in_pieces ? (rows + kWholeTiles) * panels * kPanelRows : 0;
    return size_t(kUnpackedBytes) + size_t(sums) * sizeof(float);
}
/// Largest integer that stands for an activation where levels are codes, and for a level in blocks of 32 or 64. The products of
/// a block cannot overflow int32: 32 * 8191 * 8191 = 2,146,959,392 and 64 * 4095 * 8191 = 2,146,697,280, both < 2^31 =
/// 2,147,483,648.
constexpr int kActivationMax = 8191;
constexpr int level_max(int64_t block) { return block == 64 ? 4095 : 8191; }
/// The same for activations where levels are words, in blocks of up to 128. Words of a block are as fine as the sum of their
/// magnitudes allows, which for given activations is all that can overflow: 174,776 * 12287 = 2,147,472,712.
constexpr int kWordActivationMax = 12287;
constexpr int kWordSum = 174776;
/// The same where levels are bytes: 512 * 128 * 32767 = 2,147,418,112.
constexpr int kByteActivationMax = 32767;
constexpr int64_t kLargestBlock = 512;
/// The same where both are bytes: levels are stored with kByteBias added, 512 * 255 * 127 is far from 2^31.
constexpr int kActivationMax8 = 127;
constexpr int kLevelMax8 = 127;
constexpr int kByteBias = 128;

/// How the levels of a panel lie in memory. One group (8 columns of 16 rows) is 64, 128 or 256 bytes.
enum class LevelForm : int {
    codes,  ///< 4 bits, an index into a table; places by Kernels::nibble_place
    bytes,  ///< level + kByteBias; places by Kernels::byte_place
    words,  ///< int16 [4 pairs of columns][16 rows][2]
};
enum class ScaleForm : int {
    f32,     ///< float [panels][blocks][16]
    f16,     ///< the same in f16, where that is exact
    nested,  ///< u8 [panels][blocks][16]: nested_map[code] * nested[block of the row-major weight >> nested_shift] + offset
};

/// A table of 256 second-level scales, twice: exact, and as integers that a vector unit can look up.
struct NestedMap {
    float values[256];
    int16_t words[256];  ///< values / unit, rounded
    float unit;
};

/// A weight in blocks of integers, 16 rows interleaved:
///   value[r][k] = level * unit * scale[r][k / block] + offset[r][k / block]
/// Rows past `rows` in the last panel hold levels and scales of zero.
struct Panels {
    LevelForm level_form = LevelForm::codes;
    ScaleForm scale_form = ScaleForm::f32;
    const uint8_t* levels = nullptr;  ///< [panels][cols / 8][bytes of a group]
    const void* scales = nullptr;     ///< [panels][cols / block][16]
    const void* offsets = nullptr;    ///< the same shape and form (f32 or f16), or null
    const int16_t* table = nullptr;   ///< codes: [16] levels, |level| <= level_max(block)
    const uint8_t* table8 = nullptr;  ///< codes: [16] levels + kByteBias for products of bytes
    float unit = 1, unit8 = 1;        ///< what a level of 1 stands for, in products of int16 and of bytes
    const NestedMap* nested_map = nullptr;
    const float* nested = nullptr;
    int nested_shift = 0;
    float nested_offset = 0;
    int64_t rows = 0, cols = 0;
    int64_t block = 0;         ///< 32 or 64; words: also 128; bytes: a multiple of 32 up to 512. cols is a multiple
    int64_t scale_repeat = 1;  ///< nested: blocks of the kernel in one of the file
};

/// int16 for each form of levels, and int8 for precision "fast".
enum ActivationForm : int { kForCodes, kForBytes, kForWords, kInt8 };
constexpr int activation_max(ActivationForm form) {
    return form == kInt8       ? kActivationMax8
           : form == kForCodes ? kActivationMax
           : form == kForBytes ? kByteActivationMax
                               : kWordActivationMax;
}

/// Activations as integers, one scale per row and block: x = value * scale.
/// Rows from main_count on are second terms: what rounding took from a row with outliers, to be added to the same output row.
struct QuantizedRows {
    ActivationForm form = kForCodes;
    const uint8_t* values = nullptr;  ///< [count][stride] bytes: int16 in order, or int8 in the order of Kernels::quad_order
    const float* scales = nullptr;    ///< [blocks][scale_stride]
    const float* sums = nullptr;      ///< the same shape: scale * sum of the block's values; read where panels have offsets
    const int32_t* starts = nullptr;  ///< the same shape, int8 only: what takes the levels' bias out of the block's sum
    const int32_t* rows = nullptr;    ///< [count] row of the output
    int64_t count = 0, main_count = 0, stride = 0, scale_stride = 0;
};

/// y[row][n] = result + bias[n], or y += where `accumulate`.
struct LinearOutput {
    float* y = nullptr;
    int64_t stride = 0;
    const float* bias = nullptr;  ///< or null
    bool accumulate = false;
};

/// Element types of keys and values. kKvI8: one float scale for each key and each value.
enum KvKind : int { kKvF32, kKvF16, kKvBf16, kKvI8, kKvKinds };
/// Keys and values of a head are stored in blocks of so many: keys transposed, [blocks][head_dim][kKeyBlock].
constexpr int kKeyBlock = 64;
/// A block of values holds whole_vectors(head_dim) columns in parts of so many (the last part may have fewer):
/// [blocks][parts][kKeyBlock][columns of the part].
constexpr int kValueColumns = 64;
constexpr int64_t whole_vectors(int64_t n) { return (n + 15) / 16 * 16; }

/// One (sequence, key/value head, block of queries, range of keys). Rows of the work are (query, head of the group).
struct AttentionTask {
    const float* q = nullptr;  ///< [queries][q_stride], at the group's first head
    int64_t q_stride = 0, queries = 0, group = 0, head_dim = 0;
    const void* k = nullptr;          ///< [blocks][head_dim][kKeyBlock], of this head
    const void* v = nullptr;          ///< [blocks][parts][kKeyBlock][columns], of this head
    const float* k_scales = nullptr;  ///< [blocks * kKeyBlock] of kKvI8, else null
    const float* v_scales = nullptr;
    int64_t keys = 0;                     ///< of the sequence; also the row stride of `bias`
    int64_t first_key = 0, last_key = 0;  ///< the range of this task, first_key a multiple of kScoreBlock
    int64_t first_position = 0;           ///< of queries[0] among the keys
    bool causal = false;
    int64_t window = 0;
    float scale = 1, softcap = 0;
    const float* bias = nullptr;  ///< [group][queries][keys], at this task's first head and query; or null
    int64_t bias_head_stride = 0;
    float* out = nullptr;  ///< [queries][out_stride]
    int64_t out_stride = 0;
    /// Not null: the result goes here in parts, for merge_attention(), and `out` is not written. [partial_size(rows, dim)]
    float* partial = nullptr;
    float* scratch = nullptr;  ///< attention_scratch(queries * group, head_dim) floats, 64-byte aligned
};
/// Keys whose scores are computed before their values are read.
constexpr int kScoreBlock = 128;
/// The most rows that go through the keys together.
constexpr int kMostAttentionRows = 12;
constexpr int64_t attention_scratch(int64_t rows, int64_t head_dim) {
    // scores, the queries, the sums of values, maximum and sum of each row
    return kMostAttentionRows * kScoreBlock + rows * (head_dim + whole_vectors(head_dim)) + 2 * whole_vectors(rows) + 16;
}
/// Sums of values [rows][whole_vectors(head_dim)], maxima [rows], sums of weights [rows].
constexpr int64_t partial_size(int64_t rows, int64_t head_dim) {
    return rows * whole_vectors(head_dim) + 2 * whole_vectors(rows);
}

enum FloatKind : int { kF32, kF16, kBf16, kFloatKinds };
constexpr int kActivations = 6;  ///< in the order of halfbyte::Activation

struct Activations {
    void (*activate[kActivations])(float* x, int64_t n);
    void (*gate[kActivations])(float* x, const float* up, int64_t n);  ///< x = activation(x) * up
};

struct Kernels {
    /// Place of (row, column) of a group of codes: index of a nibble among 128; nibble 2i is the low half of byte i. [16][8]
    const uint8_t* nibble_place;
    /// Place of (row, column) of a group of bytes, among 128. [16][8]
    const uint8_t* byte_place;
    /// Columns of a group in the order in which products of bytes take them, [8]; null: this set has no such products.
    const uint8_t* quad_order;
    /// One row of int16 of at most `limit`; scales and sums of its blocks lie `stride` apart. error2 and norm2: sums of squares of
    /// what rounding took, and of x. A block with a NaN or an infinity gets NaN as its scale.
    void (*quantize_row)(const float* x, int64_t cols, int64_t block, int limit, int16_t* values, float* scales, float* sums,
                         int64_t stride, double* error2, double* norm2);
    /// One row of int8 in quad_order, with the sums that undo kByteBias (QuantizedRows::starts).
    void (*quantize_row8)(const float* x, int64_t cols, int64_t block, uint8_t* values, float* scales, float* sums,
                          int32_t* starts, int64_t stride);
    /// out = x - what the integers of quantize_row() stand for.
    void (*quantize_residual)(const float* x, int64_t cols, int64_t block, const int16_t* values, const float* scales,
                              int64_t stride, float* out);
    /// Rows 16 * first .. 16 * last of the weight times every row of x. scratch: panel_scratch(), 64-byte aligned.
    void (*panel_linear)(const Panels& weight, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last,
                         void* scratch);
    /// w [n][w_stride] elements of a float kind times x [m][x_stride]: out column c is row c of w. For small m.
    void (*float_dots[kFloatKinds])(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                                    int64_t cols, const LinearOutput& out);
    /// The same for many rows: w is transposed piece by piece into scratch on the stack.
    void (*float_gemm[kFloatKinds])(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                                    int64_t cols, const LinearOutput& out);
    /// out[i][0 .. 16) = scale * sum over k < cols of x[rows[i]][k] * a[k][16], i < count; rows null: row i itself.
    /// alone: a faster order of summation for few rows, which depends on count: not for rows that are shared out by chance.
    void (*lora_inner[kFloatKinds])(const void* a, const float* x, int64_t x_stride, const int32_t* rows, int64_t count,
                                    int64_t cols, bool alone, float scale, float* out, int64_t out_stride);
    /// y[rows[i]][c] += sum over k < rank of inner[i][k] * b[c / 16][k][c % 16], c < n
    void (*lora_outer[kFloatKinds])(const void* b, const float* inner, int64_t inner_stride, const int32_t* rows,
                                    int64_t count, int64_t rank, float* y, int64_t y_stride, int64_t n);
    void (*attention[kKvKinds])(const AttentionTask& task);
    /// out [queries][out_stride] of one task from the parts [count][partial_size(queries * group, head_dim)] that ranges of its
    /// keys gave.
    void (*merge_attention)(const float* parts, int64_t count, int64_t queries, int64_t group, int64_t head_dim, float* out,
                            int64_t out_stride);
    /// Writes x [count][x_stride] as the keys or values `first` .. of one head: see AttentionTask. Scales are of kKvI8. What
    /// pads a value to whole vectors becomes zero.
    void (*store_keys[kKvKinds])(const float* x, int64_t x_stride, int64_t count, int64_t head_dim, int64_t first,
                                 void* keys, float* scales);
    void (*store_values[kKvKinds])(const float* x, int64_t x_stride, int64_t count, int64_t head_dim, int64_t first,
                                   void* values, float* scales);

    void (*layer_norm)(const float* x, int64_t cols, const float* gamma, const float* beta, float eps, float* out);
    void (*rms_norm)(const float* x, int64_t cols, const float* gamma, float eps, float* out);
    const Activations* activation;
    void (*add)(float* x, const float* y, int64_t n);
    void (*add_scaled)(float* x, const float* y, float scale, int64_t n);
    void (*maximum)(float* x, const float* y, int64_t n);
    void (*scale)(float* x, float factor, int64_t n);
    double (*sum_of_squares)(const float* x, int64_t n);
    /// One head: pairs (i, i + half) or (2i, 2i + 1) turned by cosines and sines [half].
    void (*rope_half)(float* x, const float* cosines, const float* sines, int64_t half);
    void (*rope_interleaved)(float* x, const float* cosines, const float* sines, int64_t half);
};

struct Isa {
    const char* name;
    int rank;  ///< the highest that is supported is chosen; negative: only by HALFBYTE_ISA
    bool (*supported)();
    const Kernels* kernels;
};

/// Every instruction set of this build, from a list that CMake generates.
std::span<const Isa> built_isas();
/// The one that HALFBYTE_ISA names, or the best. Errors: invalid_argument where HALFBYTE_ISA names none that can run here.
const Isa& choose_isa();

}  // namespace halfbyte::cpu
