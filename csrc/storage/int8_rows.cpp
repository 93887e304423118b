// bitsandbytes LLM.int8(). Planes: see Int8RowsPlane. value = (level * SCB[row]) * (1 / 127), two float32 products in that order.
// Reference: bitsandbytes 0.50, int8_vectorwise_dequant.
#include <cmath>
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr float kStep = 7.874015718698502e-3f;

class Int8RowsStorage final : public Int8Blocks {
public:
    std::string_view name() const override { return "int8_rows"; }
    bool planes_are_rows() const override { return true; }

    void validate(const Weight& weight, std::string_view where) const override {
        const auto count = size_t(storage::element_count(weight, where));
        if (weight.block_size != weight.cols) {
            fail(ErrorCode::corrupt, where, ": block size ", weight.block_size, ", expected a row of ", weight.cols);
        }
        storage::check_plane(weight, kInt8RowsLevels, "levels", count, where);
        storage::check_plane(weight, kInt8RowsScb, "SCB", size_t(weight.rows) * sizeof(float), where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const int8_t* levels = weight.planes[kInt8RowsLevels].as<int8_t>() + row * weight.cols;
        const float largest = weight.planes[kInt8RowsScb].as<float>()[row];
        for (int64_t i = 0; i < weight.cols; i++) out[i] = float(levels[i]) * largest * kStep;
    }

    void unpack_row(const Weight& weight, int64_t row, int8_t* levels, float* scales, float*) const override {
        std::memcpy(levels, weight.planes[kInt8RowsLevels].as<int8_t>() + row * weight.cols, size_t(weight.cols));
        scales[0] = weight.planes[kInt8RowsScb].as<float>()[row] * kStep;
    }

    void check_scales(const Weight& weight, int64_t row, std::string_view where) const override {
        const float largest = weight.planes[kInt8RowsScb].as<float>()[row];
        if (!std::isfinite(largest)) storage::fail_scale(where, row, 0, "scale (SCB)", largest);
    }
};

}  // namespace

const Int8Blocks& int8_rows_storage() {
    static const Int8RowsStorage instance;
    return instance;
}

}  // namespace halfbyte
