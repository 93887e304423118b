// What quantize="int8" makes. Planes: see Int8Plane. value = level * scale, one float32 product; blocks of up to 512 elements
// of a row, each with a scale of its own. Larger blocks are quicker to multiply, and cost little: rounding takes 0.65 % of weights that
// are spread like a normal distribution in blocks of 128, 0.75 % in blocks of 512.
#include <cmath>
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr int64_t kLargestBlock = 512;

class Int8Storage final : public Int8Blocks {
public:
    std::string_view name() const override { return "int8"; }
    bool planes_are_rows() const override { return true; }

    void validate(const Weight& weight, std::string_view where) const override {
        const auto count = size_t(storage::element_count(weight, where));
        const int32_t block = weight.block_size;
        if (block < 32 || block > kLargestBlock || block % 32 != 0 || weight.cols % block != 0) {
            fail(ErrorCode::corrupt, where, ": blocks of ", block, " in rows of ", weight.cols,
                 ", expected a multiple of 32, at most ", kLargestBlock, ", and whole blocks");
        }
        storage::check_plane(weight, kInt8Levels, "levels", count, where);
        storage::check_plane(weight, kInt8Scales, "scales", count / size_t(block) * sizeof(float), where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const int8_t* levels = weight.planes[kInt8Levels].as<int8_t>() + row * weight.cols;
        const float* scales = row_scales(weight, row);
        for (int64_t i = 0; i < weight.cols; i++) out[i] = float(levels[i]) * scales[i / weight.block_size];
    }

    void unpack_row(const Weight& weight, int64_t row, int8_t* levels, float* scales, float*) const override {
        std::memcpy(levels, weight.planes[kInt8Levels].as<int8_t>() + row * weight.cols, size_t(weight.cols));
        std::memcpy(scales, row_scales(weight, row), size_t(weight.cols / weight.block_size) * sizeof(float));
    }

    void check_scales(const Weight& weight, int64_t row, std::string_view where) const override {
        const float* scales = row_scales(weight, row);
        for (int64_t b = 0; b < weight.cols / weight.block_size; b++)
            if (!std::isfinite(scales[b])) storage::fail_scale(where, row, b * weight.block_size, "scale", scales[b]);
    }

private:
    static const float* row_scales(const Weight& weight, int64_t row) {
        return weight.planes[kInt8Scales].as<float>() + row * (weight.cols / weight.block_size);
    }
};

}  // namespace

int64_t int8_block(int64_t cols) {
    if (cols % 32 != 0) return 0;
    if (cols <= kLargestBlock) return cols;
    int64_t block = kLargestBlock;
    while (cols % block != 0) block /= 2;
    return block;
}

const Int8Blocks& int8_storage() {
    static const Int8Storage instance;
    return instance;
}

}  // namespace halfbyte
