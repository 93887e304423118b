// 4-bit layers of GPTQ and AWQ folders, as they are saved: [in, out], eight codes an int32, a scale and a zero for each group of
// inputs of each output. value = (code - zero) * scale, in float32 exact: a difference of 5 bits times a scale of at most 11.
//
// Plane kInt4Codes: GPTQ packs along inputs, int32 [in / 8, out], input 8 i + k of an output in bits 4 k of word i; AWQ along
// outputs, int32 [in, out / 8], output 8 j + kAwqOrder[k] in bits 4 k of word j. Plane kInt4Zeros: int32 [groups, out / 8] in the
// order of outputs that the codes of AWQ have, in GPTQ in order. References: AutoGPTQ nn_modules/qlinear/qlinear_cuda_old.py,
// GPTQModel (checkpoint_format gptq_v2), AutoAWQ awq/utils/packing_utils.py.
//
// Rows are outputs: a row is read with a stride, and its neighbours come from the same lines of the cache.
#include <array>
#include <cmath>
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr std::array<float, 16> kLevels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Bits 4 k of a word of AWQ hold output kAwqOrder[k] of eight: output r is in bits 4 * kAwqPlace[r].
constexpr std::array<int, 8> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t word(const Plane& plane, int64_t index) {
    uint32_t value;
    std::memcpy(&value, plane.as<char>() + index * 4, sizeof value);
    return value;
}

int64_t groups_of(const Weight& w) { return w.block_size == 0 ? 0 : (w.cols + w.block_size - 1) / w.block_size; }

class Int4Groups final : public Codebook4 {
public:
    enum class Layout { gptq, gptq_v2, awq };
    Int4Groups(std::string_view name, Layout layout) : name_(name), layout_(layout) {}

    std::string_view name() const override { return name_; }
    bool has_offsets() const override { return true; }
    bool in_row_order() const override { return false; }
    std::span<const float, 16> levels(const Weight&) const override { return kLevels; }

    void validate(const Weight& w, std::string_view where) const override {
        const int64_t count = storage::element_count(w, where);
        if (w.rows % 8 != 0 || w.cols % 8 != 0)
            fail(ErrorCode::corrupt, where, ": shape [", w.rows, ", ", w.cols, "], and eight codes are packed together");
        if (w.block_size < 1) fail(ErrorCode::corrupt, where, ": a group of ", w.block_size, " inputs, expected 1 or more");
        const auto groups = size_t(groups_of(w)), rows = size_t(w.rows);
        storage::check_plane(w, kInt4Codes, "qweight", size_t(count) / 2, where);
        storage::check_plane(w, kInt4Zeros, "qzeros", groups * rows / 2, where);
        storage::check_plane(w, kInt4Scales, "scales", groups * rows * sizeof(float), where);
    }

    void decode_row(const Weight& w, int64_t row, float* out) const override {
        for (int64_t group = 0; group < groups_of(w); group++) {
            const int zero = zero_of(w, group, row);
            const float scale = w.planes[kInt4Scales].as<float>()[group * w.rows + row];
            const int64_t first = group * w.block_size, last = std::min(w.cols, first + w.block_size);
            for (int64_t col = first; col < last; col++) out[col] = float(code_of(w, row, col) - zero) * scale;
        }
    }

    void unpack_row(const Weight& w, int64_t row, uint8_t* codes, float* scales, float* offsets) const override {
        if (layout_ == Layout::awq) {
            for (int64_t col = 0; col < w.cols; col++) codes[col] = uint8_t(code_of(w, row, col));
        } else {
            for (int64_t i = 0; i < w.cols / 8; i++) {
                const uint32_t eight = word(w.planes[kInt4Codes], i * w.rows + row);
                for (int k = 0; k < 8; k++) codes[8 * i + k] = uint8_t((eight >> (4 * k)) & 15);
            }
        }
        unpack_scales(w, row, scales, offsets);
    }

    void unpack_rows(const Weight& w, int64_t first, int64_t count, uint8_t* codes, float* scales,
                     float* offsets) const override {
        if (layout_ != Layout::awq || first % 8 != 0 || count % 8 != 0)
            return Codebook4::unpack_rows(w, first, count, codes, scales, offsets);
        // The words of an input lie a power of two behind those of the one before: in few sets of a cache. Each is read once.
        for (int64_t col = 0; col < w.cols; col++)
            for (int64_t eight = 0; eight < count; eight += 8) {
                const uint32_t bits = word(w.planes[kInt4Codes], col * (w.rows / 8) + (first + eight) / 8);
                for (int64_t r = 0; r < 8; r++)
                    codes[(eight + r) * w.cols + col] = uint8_t((bits >> (4 * kAwqPlace[size_t(r)])) & 15);
            }
        const int64_t groups = groups_of(w);
        for (int64_t r = 0; r < count; r++) unpack_scales(w, first + r, scales + r * groups, offsets + r * groups);
    }

    void unpack_scales(const Weight& w, int64_t row, float* scales, float* offsets) const {
        for (int64_t group = 0; group < groups_of(w); group++) {
            scales[group] = w.planes[kInt4Scales].as<float>()[group * w.rows + row];
            if (offsets != nullptr) offsets[group] = -float(zero_of(w, group, row)) * scales[group];
        }
    }

    void check_scales(const Weight& w, int64_t row, std::string_view where) const override {
        for (int64_t group = 0; group < groups_of(w); group++) {
            const float scale = w.planes[kInt4Scales].as<float>()[group * w.rows + row];
            if (!std::isfinite(scale)) storage::fail_scale(where, row, group * w.block_size, "scale", scale);
            if (layout_ == Layout::gptq && zero_of(w, group, row) == 0) fail_zero(where, row, group * w.block_size);
        }
    }

private:
    int code_of(const Weight& w, int64_t row, int64_t col) const {
        if (layout_ == Layout::awq)
            return int((word(w.planes[kInt4Codes], col * (w.rows / 8) + row / 8) >> (4 * kAwqPlace[size_t(row % 8)])) & 15);
        return int((word(w.planes[kInt4Codes], col / 8 * w.rows + row) >> (4 * (col % 8))) & 15);
    }
    /// A zero of 0, less one: AutoGPTQ's kernels make 0 or 16 of it, and GPTQModel has borrowed the one from its neighbour.
    [[noreturn]] static void fail_zero(std::string_view where, int64_t row, int64_t column) {
        fail(ErrorCode::unsupported, where, ": the zero of row ", row, " from column ", column,
             " on is stored as 15, which programs read in different ways; save the model again with checkpoint_format "
             "\"gptq_v2\"");
    }
    int zero_of(const Weight& w, int64_t group, int64_t row) const {
        const int place = layout_ == Layout::awq ? kAwqPlace[size_t(row % 8)] : int(row % 8);
        const int stored = int((word(w.planes[kInt4Zeros], group * (w.rows / 8) + row / 8) >> (4 * place)) & 15);
        return layout_ == Layout::gptq ? (stored + 1) & 15 : stored;
    }

    std::string_view name_;
    Layout layout_;
};

}  // namespace

const Codebook4& gptq_storage() {
    static const Int4Groups instance("gptq", Int4Groups::Layout::gptq);
    return instance;
}

const Codebook4& gptq_v2_storage() {
    static const Int4Groups instance("gptq_v2", Int4Groups::Layout::gptq_v2);
    return instance;
}

const Codebook4& awq_storage() {
    static const Int4Groups instance("awq", Int4Groups::Layout::awq);
    return instance;
}

}  // namespace halfbyte
