// float64. Plane 0: [rows, cols] elements, row-major; they need not be aligned. value: rounded to float32 (nearest even).
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

class F64Storage final : public Storage {
public:
    std::string_view name() const override { return "f64"; }
    StorageKind kind() const override { return StorageKind::other; }
    bool planes_are_rows() const override { return true; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_plane(weight, 0, "data", size_t(storage::element_count(weight, where)) * sizeof(double), where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const uint8_t* from = weight.planes[0].as<uint8_t>() + row * weight.cols * int64_t(sizeof(double));
        for (int64_t i = 0; i < weight.cols; i++, from += sizeof(double)) {
            double value;
            std::memcpy(&value, from, sizeof value);
            out[i] = float(value);
        }
    }
};

}  // namespace

const Storage& f64_storage() {
    static const F64Storage instance;
    return instance;
}

}  // namespace halfbyte
