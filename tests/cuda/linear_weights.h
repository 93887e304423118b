// Weights for the tests of the linear kernels: made of random bytes in halfbyte's own storages and in two of the test's, packed
// by tiles.cpp, put into device memory.
#pragma once

#include <algorithm>
#include <memory>

#include "cuda/tiles.h"
#include "harness.h"
#include "storage/storage.h"

namespace test {

using namespace halfbyte;

template <class T>
T* writable(const Plane& plane) {
    return static_cast<T*>(const_cast<void*>(plane.data));
}

template <class T>
Plane plane_of(const std::vector<T>& values) {
    Plane plane = allocate_plane(values.size() * sizeof(T));
    std::memcpy(writable<T>(plane), values.data(), values.size() * sizeof(T));
    return plane;
}

inline std::vector<uint8_t> random_bytes(size_t n) {
    std::vector<uint8_t> out(n);
    for (uint8_t& b : out) b = uint8_t(generator()());
    return out;
}

/// Planes: a byte for each code, scales, offsets, levels. Any block.
class PlainCodebook : public Codebook4 {
public:
    explicit PlainCodebook(bool offsets) : offsets_(offsets) {}
    std::string_view name() const override { return "plain4"; }
    void validate(const Weight&, std::string_view) const override {}
    bool has_offsets() const override { return offsets_; }
    std::span<const float, 16> levels(const Weight& w) const override {
        return std::span<const float, 16>(w.planes[3].as<float>(), 16);
    }
    void decode_row(const Weight& w, int64_t row, float* out) const override {
        for (int64_t c = 0; c < w.cols; c++) {
            const int64_t block = row * (w.cols / w.block_size) + c / w.block_size;
            out[c] = levels(w)[w.planes[0].as<uint8_t>()[row * w.cols + c]] * w.planes[1].as<float>()[block];
            if (offsets_) out[c] += w.planes[2].as<float>()[block];
        }
    }
    void unpack_row(const Weight& w, int64_t row, uint8_t* codes, float* scales, float* offsets) const override {
        const int64_t blocks = w.cols / w.block_size;
        std::copy_n(w.planes[0].as<uint8_t>() + row * w.cols, w.cols, codes);
        std::copy_n(w.planes[1].as<float>() + row * blocks, blocks, scales);
        if (offsets_) std::copy_n(w.planes[2].as<float>() + row * blocks, blocks, offsets);
    }

private:
    bool offsets_;
};

/// The same with signed bytes.
class PlainInt8 : public Int8Blocks {
public:
    explicit PlainInt8(bool offsets) : offsets_(offsets) {}
    std::string_view name() const override { return "plain8"; }
    void validate(const Weight&, std::string_view) const override {}
    bool has_offsets() const override { return offsets_; }
    void decode_row(const Weight& w, int64_t row, float* out) const override {
        for (int64_t c = 0; c < w.cols; c++) {
            const int64_t block = row * (w.cols / w.block_size) + c / w.block_size;
            out[c] = float(w.planes[0].as<int8_t>()[row * w.cols + c]) * w.planes[1].as<float>()[block];
            if (offsets_) out[c] += w.planes[2].as<float>()[block];
        }
    }
    void unpack_row(const Weight& w, int64_t row, int8_t* levels, float* scales, float* offsets) const override {
        const int64_t blocks = w.cols / w.block_size;
        std::copy_n(w.planes[0].as<int8_t>() + row * w.cols, w.cols, levels);
        std::copy_n(w.planes[1].as<float>() + row * blocks, blocks, scales);
        if (offsets_) std::copy_n(w.planes[2].as<float>() + row * blocks, blocks, offsets);
    }

private:
    bool offsets_;
};

inline Weight shaped(const Storage& storage, int64_t rows, int64_t cols, int block) {
    Weight w;
    w.rows = rows;
    w.cols = cols;
    w.storage = &storage;
    w.block_size = block;
    return w;
}

inline std::vector<float> scales_of(size_t n) {
    std::vector<float> out = normal(n, 0.02f);
    for (float& v : out) v = std::abs(v) + 0.001f;
    return out;
}

inline Weight plain4(int64_t rows, int64_t cols, int block, bool offsets) {
    static const PlainCodebook with(true), without(false);
    Weight w = shaped(offsets ? with : without, rows, cols, block);
    std::vector<uint8_t> codes = random_bytes(size_t(w.size()));
    for (uint8_t& c : codes) c &= 15;
    w.planes[0] = plane_of(codes);
    w.planes[1] = plane_of(scales_of(size_t(w.size() / block)));
    if (offsets) w.planes[2] = plane_of(normal(size_t(w.size() / block), 0.02f));
    w.planes[3] = plane_of(normal(16));
    return w;
}

inline Weight plain8(int64_t rows, int64_t cols, int block, bool offsets) {
    static const PlainInt8 with(true), without(false);
    Weight w = shaped(offsets ? with : without, rows, cols, block);
    w.planes[0] = plane_of(random_bytes(size_t(w.size())));
    w.planes[1] = plane_of(scales_of(size_t(w.size() / block)));
    if (offsets) w.planes[2] = plane_of(normal(size_t(w.size() / block), 0.02f));
    return w;
}

/// nested: scales to a second-level scale, 0: plain. Blocks may cross rows.
inline Weight bnb4(const Storage& storage, int64_t rows, int64_t cols, int block, int nested) {
    Weight w = shaped(storage, rows, cols, block);
    const size_t blocks = size_t((w.size() + block - 1) / block);
    w.planes[kBnb4Codes] = plane_of(random_bytes(size_t(w.size() + 1) / 2));
    w.planes[kBnb4Map] = plane_of(normal(16));
    if (nested == 0) {
        w.planes[kBnb4Absmax] = plane_of(scales_of(blocks));
        return w;
    }
    w.nested_block_size = nested;
    w.nested_offset = 0.03f;
    w.planes[kBnb4Absmax] = plane_of(random_bytes(blocks));
    w.planes[kBnb4NestedAbsmax] = plane_of(scales_of((blocks + size_t(nested) - 1) / size_t(nested)));
    w.planes[kBnb4NestedMap] = plane_of(normal(256));
    return w;
}

/// A file of halfbyte's own: rows 16 by 16, codes of a group in an order that a table tells.
inline Weight panels(int64_t rows, int64_t cols, int block, int nested) {
    Weight w = shaped(nf4_panels_storage(), rows, cols, block);
    const int64_t count = (rows + 15) / 16, row_blocks = cols / block;
    w.planes[kBnb4PanelsCodes] = plane_of(random_bytes(size_t(count * cols * 8)));
    std::vector<uint8_t> places(128);
    for (size_t i = 0; i < places.size(); i++) places[i] = uint8_t(i);
    std::shuffle(places.begin(), places.end(), generator());
    w.planes[kBnb4PanelsPlaces] = plane_of(places);
    w.planes[kBnb4PanelsMaps] = plane_of(normal(nested ? 16 + 256 : 16));
    if (nested == 0) {
        w.planes[kBnb4PanelsScales] = plane_of(scales_of(size_t(count * row_blocks * 16)));
        return w;
    }
    w.nested_block_size = nested;
    w.nested_offset = 0.03f;
    w.planes[kBnb4PanelsScales] = plane_of(random_bytes(size_t(count * row_blocks * 16)));
    w.planes[kBnb4PanelsNested] = plane_of(scales_of(size_t((rows * row_blocks + nested - 1) / nested)));
    return w;
}

inline Weight floats(DType dtype, int64_t rows, int64_t cols) {
    const std::vector<float> values = normal(size_t(rows * cols), 0.1f);
    Plane plane;
    if (dtype == DType::f32) {
        plane = plane_of(values);
    } else {
        std::vector<uint16_t> bits(values.size());
        for (size_t i = 0; i < bits.size(); i++)
            bits[i] = dtype == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
        plane = plane_of(bits);
    }
    return make_float_weight(plane.data, dtype, rows, cols, plane.owner);
}

inline Weight f64(int64_t rows, int64_t cols) {
    Weight w = shaped(f64_storage(), rows, cols, 0);
    const std::vector<float> values = normal(size_t(rows * cols), 0.1f);
    w.planes[0] = plane_of(std::vector<double>(values.begin(), values.end()));
    return w;
}

inline Weight int8_rows(int64_t rows, int64_t cols) {
    Weight w = shaped(int8_rows_storage(), rows, cols, int(cols));
    w.planes[kInt8RowsLevels] = plane_of(random_bytes(size_t(w.size())));
    w.planes[kInt8RowsScb] = plane_of(scales_of(size_t(rows)));
    return w;
}

inline Weight int8(int64_t rows, int64_t cols, int block) {
    Weight w = shaped(int8_storage(), rows, cols, block);
    w.planes[kInt8Levels] = plane_of(random_bytes(size_t(w.size())));
    w.planes[kInt8Scales] = plane_of(scales_of(size_t(w.size() / block)));
    return w;
}

/// A weight in device memory, and what it is: its values (bit for bit what kernels must decode), and for each element
/// |level * scale| and |offset|, out of which bounds are made.
struct DeviceWeight {
    Weight weight;
    cuda::TiledPlanes plan;
    std::vector<float> values, product, offset;
    std::unique_ptr<DeviceArray<uint8_t>> codes, scales;
    std::unique_ptr<DeviceArray<float>> offsets, levels, nested_levels, nested_scales;
    cuda::TiledWeight tiled;

    explicit DeviceWeight(const Weight& w) : weight(w), plan(cuda::plan_tiles(w)) {
        decode_all();
        std::vector<uint8_t> code_bytes(plan.code_bytes(), 0xff), scale_bytes(plan.scale_bytes(), 0xff);
        std::vector<float> offset_values(plan.offset_bytes() / sizeof(float), NAN);
        // In pieces, the last first.
        for (int64_t last = plan.row_tiles; last > 0; last = std::max<int64_t>(0, last - 3)) {
            const auto first = size_t(std::max<int64_t>(0, last - 3));
            cuda::pack_row_tiles(w, plan, int64_t(first), last, code_bytes.data() + first * plan.tile_codes,
                                 scale_bytes.data() + first * plan.tile_scales,
                                 offset_values.data() + first * plan.tile_offsets / sizeof(float));
        }
        codes = std::make_unique<DeviceArray<uint8_t>>(code_bytes);
        const bool quantized = plan.tile_scales != 0, codebook = plan.format == cuda::Format::codebook4;
        if (quantized) scales = std::make_unique<DeviceArray<uint8_t>>(scale_bytes);
        if (plan.tile_offsets != 0) offsets = std::make_unique<DeviceArray<float>>(offset_values);
        if (codebook)
            levels = std::make_unique<DeviceArray<float>>(std::vector<float>(plan.levels.begin(), plan.levels.end()));
        if (plan.nested_levels) {
            nested_levels =
                std::make_unique<DeviceArray<float>>(std::vector<float>(plan.nested_levels, plan.nested_levels + 256));
            nested_scales = std::make_unique<DeviceArray<float>>(
                std::vector<float>(plan.nested_scales, plan.nested_scales + plan.nested_count));
        }
        const auto data = [](const auto& array) { return array ? array->data : nullptr; };
        tiled = cuda::tiled_weight(plan, codes->data, data(scales), data(offsets), data(levels), data(nested_levels),
                                   data(nested_scales));
    }

private:
    void decode_all() {
        const auto size = size_t(weight.size()), cols = size_t(weight.cols);
        values.resize(size);
        product.resize(size);
        offset.resize(size);
        const StorageKind kind = weight.storage->kind();
        std::vector<uint8_t> bytes(cols);
        std::vector<float> s(cols + 1), o(cols + 1);
        for (size_t r = 0; r < size_t(weight.rows); r++) {
            float* out = values.data() + r * cols;
            weight.storage->decode_row(weight, int64_t(r), out);
            const bool blocks = plan.tile_scales != 0;
            if (blocks && kind == StorageKind::codebook4)
                static_cast<const Codebook4&>(*weight.storage)
                    .unpack_row(weight, int64_t(r), bytes.data(), s.data(), o.data());
            if (blocks && kind == StorageKind::int8_blocks)
                static_cast<const Int8Blocks&>(*weight.storage)
                    .unpack_row(weight, int64_t(r), reinterpret_cast<int8_t*>(bytes.data()), s.data(), o.data());
            for (size_t c = 0; c < cols; c++) {
                const size_t b = blocks ? c / size_t(weight.block_size) : 0;
                const float level = !blocks                          ? out[c]
                                    : kind == StorageKind::codebook4 ? plan.levels[bytes[c]]
                                                                     : float(int8_t(bytes[c]));
                product[r * cols + c] = std::abs(blocks ? level * s[b] : out[c]);
                if (plan.tile_offsets != 0) offset[r * cols + c] = std::abs(o[b]);
                // LLM.int8() multiplies a level by SCB, then by 1/127; unpack_row() and kernels by the product of the two.
                if (weight.storage == &int8_rows_storage()) out[c] = level * s[b];
            }
        }
    }
};

}  // namespace test
