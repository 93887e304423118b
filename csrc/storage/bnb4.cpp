// bitsandbytes NF4 and FP4. Planes: see Bnb4Plane. Reference: bitsandbytes 0.50, functional.py (QuantState, quantize_4bit).
//
// value[i] = map[code[i]] * scale[i / block_size] over the flattened row-major matrix, one float32 product. A plain scale is
// absmax[b]; a double-quantised one is nested_map[absmax[b]] * nested_absmax[b / nested_block_size] + nested_offset, two
// float32 operations in that order.
#include "storage/bnb4.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

bool is_power_of_two(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

void check_finite(const float* values, size_t count, std::string_view name, std::string_view where) {
    for (size_t i = 0; i < count; i++) {
        if (!std::isfinite(values[i]))
            fail(ErrorCode::corrupt, where, ": ", name, "[", i, "] is ", values[i], ", not a number");
    }
}

class Bnb4Storage final : public Codebook4 {
public:
    explicit Bnb4Storage(std::string_view name) : name_(name) {}
    std::string_view name() const override { return name_; }
    bool has_offsets() const override { return false; }

    std::span<const float, 16> levels(const Weight& weight) const override {
        return std::span<const float, 16>(weight.planes[kBnb4Map].as<float>(), 16);
    }

    void validate(const Weight& weight, std::string_view where) const override {
        const int64_t count = storage::element_count(weight, where);
        if (!is_power_of_two(weight.block_size) || weight.block_size < 32 || weight.block_size > 4096) {
            fail(ErrorCode::corrupt, where, ": block size ", weight.block_size, ", expected a power of two from 32 to 4096");
        }
        const size_t blocks = size_t(storage::bnb4_blocks(weight));
        storage::check_plane(weight, kBnb4Codes, "codes", size_t(count + 1) / 2, where);
        storage::check_plane(weight, kBnb4Map, "quant_map", 16 * sizeof(float), where);
        check_finite(weight.planes[kBnb4Map].as<float>(), 16, "quant_map", where);
        if (weight.nested_block_size == 0) {
            storage::check_plane(weight, kBnb4Absmax, "absmax (float32)", blocks * sizeof(float), where);
            storage::check_plane(weight, kBnb4NestedAbsmax, "nested_absmax (scales are plain)", 0, where);
            storage::check_plane(weight, kBnb4NestedMap, "nested_quant_map (scales are plain)", 0, where);
            return;
        }
        if (!is_power_of_two(weight.nested_block_size)) {
            fail(ErrorCode::corrupt, where, ": nested block size ", weight.nested_block_size, ", expected a power of two");
        }
        const size_t nested = (blocks + size_t(weight.nested_block_size) - 1) / size_t(weight.nested_block_size);
        storage::check_plane(weight, kBnb4Absmax, "absmax (uint8)", blocks, where);
        storage::check_plane(weight, kBnb4NestedAbsmax, "nested_absmax", nested * sizeof(float), where);
        storage::check_plane(weight, kBnb4NestedMap, "nested_quant_map", 256 * sizeof(float), where);
        check_finite(weight.planes[kBnb4NestedMap].as<float>(), 256, "nested_quant_map", where);
        check_finite(&weight.nested_offset, 1, "nested_offset", where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const uint8_t* codes = weight.planes[kBnb4Codes].as<uint8_t>();
        const float* map = weight.planes[kBnb4Map].as<float>();
        const int shift = std::countr_zero(unsigned(weight.block_size));
        int64_t i = row * weight.cols;
        const int64_t row_end = i + weight.cols;
        while (i < row_end) {
            const int64_t block = i >> shift;
            const int64_t end = std::min(row_end, (block + 1) << shift);
            float scale;
            storage::bnb4_scales(weight, block, 1, &scale);
            float values[16];  // the same product for equal codes, made once
            for (int code = 0; code < 16; code++) values[code] = map[code] * scale;
            // A row of odd length makes the next one begin inside a byte.
            if ((i & 1) != 0) *out++ = values[codes[i++ >> 1] & 15];
            for (; i + 1 < end; i += 2) {
                const uint8_t byte = codes[i >> 1];
                *out++ = values[byte >> 4];
                *out++ = values[byte & 15];
            }
            if (i < end) *out++ = values[codes[i++ >> 1] >> 4];
        }
    }

    void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float*) const override {
        const uint8_t* packed = weight.planes[kBnb4Codes].as<uint8_t>() + row * weight.cols / 2;
        for (int64_t i = 0; i < weight.cols / 2; i++) {
            codes[2 * i] = packed[i] >> 4;
            codes[2 * i + 1] = packed[i] & 15;
        }
        const int64_t per_row = weight.cols / weight.block_size;
        storage::bnb4_scales(weight, row * per_row, per_row, scales);
    }

    void check_scales(const Weight& weight, int64_t row, std::string_view where) const override {
        // Blocks may cross rows.
        const int64_t last = (row + 1) * weight.cols;
        for (int64_t i = row * weight.cols; i < last; i = (i / weight.block_size + 1) * weight.block_size) {
            float scale;
            storage::bnb4_scales(weight, i / weight.block_size, 1, &scale);
            if (!std::isfinite(scale)) storage::fail_scale(where, row, i - row * weight.cols, "scale (absmax)", scale);
        }
    }

private:
    std::string_view name_;
};

}  // namespace

const Codebook4& nf4_storage() {
    static const Bnb4Storage storage("nf4");
    return storage;
}

const Codebook4& fp4_storage() {
    static const Bnb4Storage storage("fp4");
    return storage;
}

namespace storage {

void bnb4_scales(const Weight& weight, int64_t first, int64_t count, float* out) {
    if (weight.nested_block_size == 0) {
        std::memcpy(out, weight.planes[kBnb4Absmax].as<float>() + first, size_t(count) * sizeof(float));
        return;
    }
    const uint8_t* bytes = weight.planes[kBnb4Absmax].as<uint8_t>();
    const float* nested_absmax = weight.planes[kBnb4NestedAbsmax].as<float>();
    const float* nested_map = weight.planes[kBnb4NestedMap].as<float>();
    const int shift = std::countr_zero(unsigned(weight.nested_block_size));
    for (int64_t block = first; block < first + count; block++) {
        *out++ = nested_map[bytes[block]] * nested_absmax[block >> shift] + weight.nested_offset;
    }
}

Weight bnb4_reorder_rows(const Weight& weight, std::span<const int64_t> order) {
    if (!Codebook4::rows_are_whole_blocks(weight)) {
        fail(ErrorCode::unsupported, "rows of a ", weight.storage->name(), " weight [", weight.rows, ", ", weight.cols,
             "] cannot be put in another order: blocks of ", weight.block_size, " cross rows");
    }
    const int64_t row_bytes = weight.cols / 2;
    const int64_t row_blocks = weight.cols / weight.block_size;
    Weight result = weight;
    result.rows = int64_t(order.size());
    result.nested_block_size = 0;
    result.nested_offset = 0;
    result.planes[kBnb4NestedAbsmax] = {};
    result.planes[kBnb4NestedMap] = {};
    result.planes[kBnb4Codes] = allocate_plane(order.size() * size_t(row_bytes));
    result.planes[kBnb4Absmax] = allocate_plane(order.size() * size_t(row_blocks) * sizeof(float));
    auto* codes = static_cast<uint8_t*>(const_cast<void*>(result.planes[kBnb4Codes].data));
    auto* scales = static_cast<float*>(const_cast<void*>(result.planes[kBnb4Absmax].data));
    for (const int64_t row : order) {
        std::memcpy(codes, weight.planes[kBnb4Codes].as<uint8_t>() + row * row_bytes, size_t(row_bytes));
        bnb4_scales(weight, row * row_blocks, row_blocks, scales);
        codes += row_bytes;
        scales += row_blocks;
    }
    return result;
}

}  // namespace storage

}  // namespace halfbyte
