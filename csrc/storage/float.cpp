// f32, f16 and bf16. Plane 0: [rows, cols] elements, row-major, aligned to their size.
#include <cstring>

#include "core/error.h"
#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

template <DType kType>
class FloatStorageOf final : public FloatStorage {
public:
    std::string_view name() const override {
        if constexpr (kType == DType::f32) return "f32";
        if constexpr (kType == DType::f16) return "f16";
        return "bf16";
    }
    DType dtype() const override { return kType; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_plane(weight, 0, "data", size_t(storage::element_count(weight, where)) * size_of(kType), where);
        if (reinterpret_cast<uintptr_t>(weight.planes[0].data) % size_of(kType) != 0) {
            fail(ErrorCode::internal, where, ": data is not aligned to ", size_of(kType), " bytes");
        }
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        if constexpr (kType == DType::f32) {
            std::memcpy(out, weight.planes[0].as<float>() + row * weight.cols, size_t(weight.cols) * sizeof(float));
        } else {
            const uint16_t* bits = weight.planes[0].as<uint16_t>() + row * weight.cols;
            for (int64_t i = 0; i < weight.cols; i++) {
                out[i] = kType == DType::f16 ? f16_to_f32(bits[i]) : bf16_to_f32(bits[i]);
            }
        }
    }
};

}  // namespace

const FloatStorage& float_storage(DType dtype) {
    static const FloatStorageOf<DType::f32> f32;
    static const FloatStorageOf<DType::f16> f16;
    static const FloatStorageOf<DType::bf16> bf16;
    switch (dtype) {
        case DType::f32: return f32;
        case DType::f16: return f16;
        case DType::bf16: return bf16;
        default: fail(ErrorCode::internal, "float_storage: ", name_of(dtype), " has no storage");
    }
}

Weight make_float_weight(const void* data, DType dtype, int64_t rows, int64_t cols, std::shared_ptr<const void> owner) {
    Weight weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.storage = &float_storage(dtype);
    weight.planes[0] = Plane{data, size_t(rows) * size_t(cols) * size_of(dtype), std::move(owner)};
    return weight;
}

}  // namespace halfbyte
