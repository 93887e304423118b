// What the bytes of a weight mean. One class per format; the scalar decode here is the truth that kernels are tested
// against.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/dtype.h"
#include "core/weight.h"

namespace halfbyte {

enum class StorageKind {
    floating,     ///< FloatStorage
    codebook4,    ///< Codebook4
    int8_blocks,  ///< Int8Blocks
    other,        ///< Runs through "decode a row, then dot"; or a device's own layout, which only that device reads.
};

/// Stateless; one object per format, alive for the whole program.
class Storage {
public:
    virtual ~Storage() = default;
    virtual std::string_view name() const = 0;  ///< "f32", "nf4", "q4_1", ...
    virtual StorageKind kind() const = 0;
    /// Checks plane sizes and parameters against rows and cols. `where` starts the error ("model.safetensors: tensor x").
    /// Errors: corrupt.
    virtual void validate(const Weight& weight, std::string_view where) const = 0;
    /// Row `row` as float32 into out[cols]. The exact value of the format, float32 arithmetic in the reference's order.
    virtual void decode_row(const Weight& weight, int64_t row, float* out) const = 0;
    /// Elements that share a scale, where the format fixes their number; 0: no scales, or the weight tells (bitsandbytes).
    virtual int32_t block_size() const { return 0; }
    /// Every plane is [rows][bytes of a row], so that rows are moved by moving bytes.
    virtual bool planes_are_rows() const { return false; }
    /// The first rows are in the first bytes of every plane, more or less: what they were can be put away when they were read.
    virtual bool in_row_order() const { return true; }
    /// Error corrupt where a scale or offset of row `row` is not a finite number. validate() leaves this out: it would have
    /// to read the whole weight.
    virtual void check_scales(const Weight& /*weight*/, int64_t /*row*/, std::string_view /*where*/) const {}
};

class FloatStorage : public Storage {
public:
    StorageKind kind() const override { return StorageKind::floating; }
    bool planes_are_rows() const override { return true; }
    virtual DType dtype() const = 0;  ///< f32, f16 or bf16. Plane 0: [rows, cols] elements.
};

/// value = levels[code] * scale + offset, one scale and offset per block of consecutive elements.
class Codebook4 : public Storage {
public:
    StorageKind kind() const override { return StorageKind::codebook4; }
    virtual std::span<const float, 16> levels(const Weight& weight) const = 0;
    virtual bool has_offsets() const = 0;
    /// True where each row is a whole number of blocks, so that unpack_row() below may be called.
    static bool rows_are_whole_blocks(const Weight& weight) { return weight.cols % weight.block_size == 0; }
    /// codes[cols] in 0..15, scales[cols / block_size], offsets[cols / block_size] (untouched where has_offsets() is false;
    /// may then be null). Requires rows_are_whole_blocks().
    virtual void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float* offsets) const = 0;
    /// The same of `count` rows from `first` on, [count] of each behind one another. A format that lies the other way round reads
    /// neighbours together. offsets: not null.
    virtual void unpack_rows(const Weight& weight, int64_t first, int64_t count, uint8_t* codes, float* scales,
                             float* offsets) const {
        const int64_t blocks = weight.cols / weight.block_size;
        for (int64_t r = 0; r < count; r++)
            unpack_row(weight, first + r, codes + r * weight.cols, scales + r * blocks, offsets + r * blocks);
    }
};

/// value = level * scale + offset, level a signed byte, one scale and offset per block of consecutive elements of a row.
class Int8Blocks : public Storage {
public:
    StorageKind kind() const override { return StorageKind::int8_blocks; }
    virtual bool has_offsets() const { return false; }
    /// levels[cols], scales[cols / block_size], offsets[cols / block_size] (untouched where has_offsets() is false; may then
    /// be null). cols is a multiple of block_size.
    virtual void unpack_row(const Weight& weight, int64_t row, int8_t* levels, float* scales, float* offsets) const = 0;
};

// The formats. Plane layout of each is told in its file.
const FloatStorage& float_storage(DType dtype);  ///< f32, f16, bf16; anything else: Error internal.
const Codebook4& nf4_storage();                  ///< bitsandbytes NF4, plain or double-quantised scales.
const Codebook4& fp4_storage();                  ///< bitsandbytes FP4, likewise.
const Codebook4& gptq_storage();                 ///< GPTQ folders; zeros are stored less one.
const Codebook4& gptq_v2_storage();              ///< GPTQ folders of checkpoint_format "gptq_v2".
const Codebook4& awq_storage();                  ///< AWQ folders, version "gemm".
const Storage& fp8_storage();                    ///< 8-bit floats with scales.
const Int8Blocks& int8_rows_storage();           ///< bitsandbytes LLM.int8(): one scale a row.
const Int8Blocks& int8_storage();                ///< What quantize="int8" makes: see int8_block().
const Int8Blocks& q8_0_storage();                ///< GGUF Q8_0.
/// Elements that share a scale in what quantize="int8" makes of rows of so many: a row of up to 512 has one scale; of longer ones,
/// the largest of 512, 256, ... 32 elements that divides them. 0: cols is no multiple of 32.
int64_t int8_block(int64_t cols);

// The other formats of GGUF. Where a format's scales stand for 16 elements it says so: kernels take blocks of 32 or more.
const Storage& f64_storage();  ///< float64, rounded to float32.
const Codebook4& q4_0_storage();
const Codebook4& q4_1_storage();
const Int8Blocks& q5_0_storage();
const Int8Blocks& q5_1_storage();
const Codebook4& q2_k_storage();  ///< blocks of 16
const Int8Blocks& q3_k_storage();
const Codebook4& q4_k_storage();
const Int8Blocks& q5_k_storage();
const Int8Blocks& q6_k_storage();  ///< blocks of 16
const Codebook4& iq4_nl_storage();
const Codebook4& iq4_xs_storage();
const Codebook4& mxfp4_storage();
const Codebook4& nvfp4_storage();  ///< blocks of 16
const Codebook4& iq1_s_storage();
const Codebook4& iq1_m_storage();  ///< blocks of 16
const Codebook4& iq2_xxs_storage();
const Codebook4& iq2_xs_storage();  ///< blocks of 16
const Codebook4& iq2_s_storage();   ///< blocks of 16
const Codebook4& iq3_xxs_storage();
const Codebook4& iq3_s_storage();
const Codebook4& tq1_0_storage();
const Codebook4& tq2_0_storage();

/// Planes of NF4 and FP4, as bitsandbytes stores them; blocks run over the flattened row-major matrix and may cross rows.
enum Bnb4Plane : int {
    kBnb4Codes = 0,         ///< u8 [(rows*cols + 1) / 2]; element 2i in the high nibble
    kBnb4Absmax = 1,        ///< plain: f32 [blocks]; double-quantised: u8 [blocks]
    kBnb4Map = 2,           ///< f32 [16], the levels of this very file
    kBnb4NestedAbsmax = 3,  ///< double-quantised only: f32 [ceil(blocks / nested_block_size)]
    kBnb4NestedMap = 4,     ///< double-quantised only: f32 [256]
};

/// Rows of a panel.
constexpr int64_t kBnb4PanelRows = 16;
/// Planes of nf4_panels_storage() and fp4_panels_storage(): rows 16 by 16 side by side, rows of whole blocks. What fills up the
/// last panel may hold anything.
enum Bnb4PanelsPlane : int {
    kBnb4PanelsCodes = 0,   ///< u8 [panels][cols / 8][64]: nibble places[r][k] of a group is the code of its row r, column k
    kBnb4PanelsScales = 1,  ///< plain: f32 [panels][blocks of a row][16]; double-quantised: u8, the same shape
    kBnb4PanelsMaps = 2,    ///< f32 [16] levels; double-quantised: f32 [256] levels of the scales behind them
    kBnb4PanelsNested = 3,  ///< double-quantised only: f32 [ceil(blocks / nested_block_size)], as in kBnb4NestedAbsmax
    kBnb4PanelsPlaces = 4,  ///< u8 [16][8]: nibble 2 i is the low half of byte i
};
const Codebook4& nf4_panels_storage();
const Codebook4& fp4_panels_storage();
bool is_bnb4_panels(const Weight& weight);
/// The same weight as nf4_storage() or fp4_storage(), bit for bit.
Weight bnb4_from_panels(const Weight& panels);

/// Planes of int8_rows_storage(). block_size is cols.
enum Int8RowsPlane : int {
    kInt8RowsLevels = 0,  ///< i8 [rows, cols]
    kInt8RowsScb = 1,     ///< f32 [rows]: what 127 stands for
};

/// Planes of gptq_storage(), gptq_v2_storage() and awq_storage(); block_size is the group.
enum Int4Plane : int {
    kInt4Codes = 0,   ///< i32: see storage/int4_groups.cpp
    kInt4Zeros = 1,   ///< i32 [groups, rows / 8]
    kInt4Scales = 2,  ///< f32 [groups, rows]
};

/// Planes of fp8_storage(). A scale is for nested_block_size rows and block_size columns.
enum Fp8Plane : int {
    kFp8Bytes = 0,   ///< u8 [rows, cols], E4M3
    kFp8Scales = 1,  ///< f32 [rows / nested_block_size, cols / block_size], both rounded up
};

/// Planes of int8_storage().
enum Int8Plane : int {
    kInt8Levels = 0,  ///< i8 [rows, cols]
    kInt8Scales = 1,  ///< f32 [rows, cols / block_size]
};

/// The whole weight as float32 [rows, cols].
void decode(const Weight& weight, float* out);

/// Weight over a float matrix. A 2-D view of memory that `owner` keeps alive.
Weight make_float_weight(const void* data, DType dtype, int64_t rows, int64_t cols, std::shared_ptr<const void> owner);

/// The same weight with its rows in another order: row i of the result is row order[i]. Owns new planes; exact.
/// Errors: unsupported where blocks cross rows (the values could not be kept).
Weight reorder_rows(const Weight& weight, std::span<const int64_t> order);

}  // namespace halfbyte
