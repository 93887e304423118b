// 8-bit floats (E4M3 of the OCP specification, "fn": no infinities, 0x7f and 0xff are NaN) with a scale for a rectangle of the
// matrix. value = float32 of the byte * scale, one float32 product. Plane kFp8Bytes: u8 [rows, cols]; plane kFp8Scales: f32
// [ceil(rows / nested_block_size), ceil(cols / block_size)]. References: torch.float8_e4m3fn; transformers
// integrations/finegrained_fp8.py (weight_scale_inv); compressed-tensors (weight_scale).
#include <array>
#include <bit>
#include <cmath>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr std::array<float, 256> make_values() {
    std::array<float, 256> values{};
    for (int byte = 0; byte < 256; byte++) {
        const int exponent = (byte >> 3) & 15, mantissa = byte & 7;
        // Normal numbers: 2^(e - 7) (1 + m / 8); subnormal ones: m 2^-9.
        float value = exponent == 0 ? float(mantissa) / 512.0f : float(8 + mantissa) / 8.0f;
        for (int e = exponent; e > 7; e--) value *= 2;
        for (int e = exponent; e > 0 && e < 7; e++) value /= 2;
        values[size_t(byte)] = byte >= 128 ? -value : value;
    }
    return values;
}
constexpr std::array<float, 256> kValues = make_values();

constexpr bool is_nan(uint8_t byte) { return (byte & 0x7f) == 0x7f; }

class Fp8 final : public Storage {
public:
    StorageKind kind() const override { return StorageKind::other; }
    std::string_view name() const override { return "fp8_e4m3"; }

    void validate(const Weight& w, std::string_view where) const override {
        const int64_t count = storage::element_count(w, where);
        if (w.block_size < 1 || w.nested_block_size < 1)
            fail(ErrorCode::corrupt, where, ": a scale for [", w.nested_block_size, ", ", w.block_size,
                 "] elements, expected 1 or more either way");
        storage::check_plane(w, kFp8Bytes, "bytes", size_t(count), where);
        storage::check_plane(w, kFp8Scales, "scales", size_t(scale_rows(w) * scale_cols(w)) * sizeof(float), where);
    }

    void decode_row(const Weight& w, int64_t row, float* out) const override {
        const uint8_t* bytes = w.planes[kFp8Bytes].as<uint8_t>() + row * w.cols;
        const float* scales = scales_of(w, row);
        for (int64_t first = 0; first < w.cols; first += w.block_size, scales++) {
            const int64_t last = std::min<int64_t>(w.cols, first + w.block_size);
            for (int64_t col = first; col < last; col++) out[col] = kValues[bytes[col]] * *scales;
        }
    }

    void check_scales(const Weight& w, int64_t row, std::string_view where) const override {
        for (int64_t block = 0; block < scale_cols(w); block++)
            if (!std::isfinite(scales_of(w, row)[block]))
                storage::fail_scale(where, row, block * w.block_size, "scale", scales_of(w, row)[block]);
        const uint8_t* bytes = w.planes[kFp8Bytes].as<uint8_t>() + row * w.cols;
        for (int64_t col = 0; col < w.cols; col++)
            if (is_nan(bytes[col])) storage::fail_scale(where, row, col, "value", "NaN");
    }

private:
    static int64_t scale_rows(const Weight& w) { return (w.rows + w.nested_block_size - 1) / w.nested_block_size; }
    static int64_t scale_cols(const Weight& w) { return (w.cols + w.block_size - 1) / w.block_size; }
    static const float* scales_of(const Weight& w, int64_t row) {
        return w.planes[kFp8Scales].as<float>() + row / w.nested_block_size * scale_cols(w);
    }
};

}  // namespace

const Storage& fp8_storage() {
    static const Fp8 instance;
    return instance;
}

}  // namespace halfbyte
