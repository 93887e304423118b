// The functions that one instruction set provides. Raw pointers only: nothing here may instantiate a template that the
// linker could keep for every machine.
#pragma once

#include <cstdint>
#include <span>

namespace halfbyte::cpu {

/// Weight rows that are interleaved in a panel; also the width of a tile of outputs.
constexpr int kPanelRows = 16;
/// Columns of one group of codes: 16 rows x 8 columns of 4 bits are one line of 64 bytes.
constexpr int kGroupCols = 8;
/// Largest integer that stands for an activation, and for a 4-bit level in blocks of 32 or 64. The products of a block cannot
/// overflow int32: 32 * 8191 * 8191 = 2,146,959,392 and 64 * 4095 * 8191 = 2,146,697,280, both < 2^31 = 2,147,483,648.
constexpr int kActivationMax = 8191;
constexpr int level_max(int64_t block) { return block == 64 ? 4095 : 8191; }
/// Scales of activations are stored times 2^-23 and scales of rows times 2^23, so that sums of integers up to 2^31 times
/// integer scales up to 2^15 neither overflow nor vanish for activations between 1e-27 and 1e35.
constexpr float kScaleShift = 0x1p-23f;

/// A 4-bit or 8-bit weight, 16 rows interleaved:
///   value[r][k] = (level * scales[block] * row_scale[r] + offsets[block] * row_offset[r]) * kScaleShift
/// Rows past `rows` in the last panel hold zeros.
struct Panels {
    const uint8_t* levels = nullptr;   ///< table: codes [panels][cols/8][64]; no table: int8 [panels][cols/2][16][2]
    const int16_t* scales = nullptr;   ///< [panels][cols/block][16]
    const int16_t* offsets = nullptr;  ///< the same shape, or null
    const float* row_scale = nullptr;  ///< [panels * 16]
    /// [panels * 16] row_offset / row_scale, so that one accumulator serves both; null without offsets
    const float* row_offset_ratio = nullptr;
    const int16_t* table = nullptr;  ///< [16] levels, |level| <= level_max(block); null: levels are int8
    int64_t rows = 0, cols = 0;
    int64_t block = 0;  ///< 32 or 64; cols is a multiple
};

/// Activations as integers, one scale per row and block: x = value * scale / kScaleShift.
/// Rows from main_count on are second terms: what rounding took from a row with outliers, to be added to the same output row.
struct QuantizedRows {
    const int16_t* values = nullptr;  ///< [count][stride], |value| <= kActivationMax
    const float* scales = nullptr;    ///< [count][blocks]
    const float* sums = nullptr;      ///< [count][blocks] scale * sum of the block's values
    const int32_t* rows = nullptr;    ///< [count] row of the output
    int64_t count = 0, main_count = 0, stride = 0, blocks = 0;
};

/// y[row][n] = result + bias[n], or y += where `accumulate`.
struct LinearOutput {
    float* y = nullptr;
    int64_t stride = 0;
    const float* bias = nullptr;  ///< or null
    bool accumulate = false;
};

/// One (sequence, key/value head, block of queries). Rows of the work are (query, head of the group).
struct AttentionTask {
    const float* q = nullptr;  ///< [queries][q_stride], at the group's first head
    int64_t q_stride = 0, queries = 0, group = 0, head_dim = 0;
    const void* k = nullptr;  ///< [keys][k_stride], at this head
    const void* v = nullptr;
    int64_t k_stride = 0, v_stride = 0;  ///< elements
    int64_t keys = 0;
    int64_t first_position = 0;  ///< of queries[0] among the keys
    bool causal = false;
    int64_t window = 0;
    float scale = 1, softcap = 0;
    const float* bias = nullptr;  ///< [group][queries][keys], at this task's first head and query; or null
    int64_t bias_head_stride = 0;
    float* out = nullptr;  ///< [queries][out_stride]
    int64_t out_stride = 0;
    float* scratch = nullptr;  ///< attention_scratch(queries * group, head_dim) floats, 64-byte aligned
};
constexpr int kKeyBlock = 64;
constexpr int64_t attention_scratch(int64_t rows, int64_t head_dim) {
    const int64_t dim = (head_dim + 15) / 16 * 16;
    // keys and values of a block, scores, the output, the queries, maximum and sum
    return 2 * kKeyBlock * dim + rows * (kKeyBlock + 2 * dim) + 2 * ((rows + 15) / 16 * 16);
}

enum FloatKind : int { kF32, kF16, kBf16, kFloatKinds };
constexpr int kActivations = 6;  ///< in the order of halfbyte::Activation

struct Activations {
    void (*activate[kActivations])(float* x, int64_t n);
    void (*gate[kActivations])(float* x, const float* up, int64_t n);  ///< x = activation(x) * up
};

struct Kernels {
    /// Place of (row, column) of a group: index of a nibble among 128; nibble 2i is the low half of byte i. [16][8]
    const uint8_t* nibble_place;
    /// One row of integers. error2 and norm2: sums of squares of what rounding took, and of x. A block with a NaN or an
    /// infinity gets NaN as its scale.
    void (*quantize_row)(const float* x, int64_t cols, int64_t block, int16_t* values, float* scales, float* sums,
                         double* error2, double* norm2);
    /// out = x - what the integers of quantize_row() stand for.
    void (*quantize_residual)(const float* x, int64_t cols, int64_t block, const int16_t* values, const float* scales,
                              float* out);
    /// Rows 16 * first .. 16 * last of the weight times every row of x.
    void (*panel_linear)(const Panels& weight, const QuantizedRows& x, const LinearOutput& out, int64_t first, int64_t last);
    /// w [n][w_stride] elements of a float kind times x [m][x_stride]: out column c is row c of w. For small m.
    void (*float_dots[kFloatKinds])(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                                    int64_t cols, const LinearOutput& out);
    /// The same for many rows: w is transposed piece by piece into scratch on the stack.
    void (*float_gemm[kFloatKinds])(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                                    int64_t cols, const LinearOutput& out);
    void (*attention[2])(const AttentionTask& task);  ///< kF32, kF16

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
    void (*to_f16)(const float* x, uint16_t* out, int64_t n);
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
