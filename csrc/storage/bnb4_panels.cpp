// bitsandbytes NF4 and FP4 with the rows interleaved 16 by 16, as a processor multiplies them: what halfbyte's own files hold, so
// that a model is mapped and run. Planes: see Bnb4PanelsPlane. Values as in bnb4.cpp, bit for bit.
//
// The order of the codes within a group of 8 columns is told by a table in the file, so that every build can read every file; the
// one whose table is the same takes the planes as they are.
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr int64_t kRows = kBnb4PanelRows, kGroup = 8, kPlaces = kRows * kGroup;

int64_t panels_of(const Weight& weight) { return (weight.rows + kRows - 1) / kRows; }

void check_numbers(const float* values, size_t count, const char* what, std::string_view where) {
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(values[i]))
            fail(ErrorCode::corrupt, where, ": ", what, "[", i, "] is ", values[i], ", not a number");
}

class Bnb4PanelsStorage final : public Codebook4 {
public:
    explicit Bnb4PanelsStorage(std::string_view name) : name_(name) {}
    std::string_view name() const override { return name_; }
    bool has_offsets() const override { return false; }

    std::span<const float, 16> levels(const Weight& weight) const override {
        return std::span<const float, 16>(weight.planes[kBnb4PanelsMaps].as<float>(), 16);
    }

    void validate(const Weight& weight, std::string_view where) const override {
        (void)storage::element_count(weight, where);
        const int64_t block = weight.block_size;
        if (block < 32 || block > 4096 || !std::has_single_bit(uint64_t(block)) || weight.cols % block != 0) {
            fail(ErrorCode::corrupt, where, ": blocks of ", block, " in rows of ", weight.cols,
                 ", expected a power of two from 32 to 4096 and whole blocks");
        }
        const bool nested = weight.nested_block_size != 0;
        if (nested && (weight.nested_block_size < 0 || !std::has_single_bit(unsigned(weight.nested_block_size)))) {
            fail(ErrorCode::corrupt, where, ": nested block size ", weight.nested_block_size, ", expected a power of two");
        }
        const auto panels = size_t(panels_of(weight)), row_blocks = size_t(weight.cols / block);
        storage::check_plane(weight, kBnb4PanelsCodes, "codes", panels * size_t(weight.cols) * kRows / 2, where);
        storage::check_plane(weight, kBnb4PanelsScales, "scales", panels * row_blocks * kRows * (nested ? 1 : sizeof(float)),
                             where);
        storage::check_plane(weight, kBnb4PanelsMaps, "maps", (nested ? 16 + 256 : 16) * sizeof(float), where);
        storage::check_plane(weight, kBnb4PanelsPlaces, "places", kPlaces, where);
        const auto blocks = nested ? size_t(weight.rows) * row_blocks : 0,
                   size = size_t(std::max(weight.nested_block_size, 1));
        storage::check_plane(weight, kBnb4PanelsNested, "nested_absmax", (blocks + size - 1) / size * sizeof(float), where);
        check_numbers(weight.planes[kBnb4PanelsMaps].as<float>(), nested ? 16 + 256 : 16, "maps", where);
        check_numbers(&weight.nested_offset, 1, "nested_offset", where);
        bool seen[kPlaces] = {};
        for (int64_t i = 0; i < kPlaces; i++) {
            const uint8_t place = weight.planes[kBnb4PanelsPlaces].as<uint8_t>()[i];
            if (place >= kPlaces || seen[place])
                fail(ErrorCode::corrupt, where, ": places[", i, "] is ", int(place), ", expected each of 0 to 127 once");
            seen[place] = true;
        }
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const uint8_t* group = groups(weight, row);
        const uint8_t* places = row_places(weight, row);
        const float* map = weight.planes[kBnb4PanelsMaps].as<float>();
        for (int64_t k = 0; k < weight.cols;) {
            const float scale = scale_of(weight, row, k / weight.block_size);
            for (const int64_t end = k + weight.block_size; k < end; group += kPlaces / 2)
                for (int64_t i = 0; i < kGroup; i++, k++) out[k] = map[code(group, places[i])] * scale;
        }
    }

    void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float*) const override {
        const uint8_t* group = groups(weight, row);
        const uint8_t* places = row_places(weight, row);
        for (int64_t k = 0; k < weight.cols; k += kGroup, group += kPlaces / 2)
            for (int64_t i = 0; i < kGroup; i++) codes[k + i] = code(group, places[i]);
        for (int64_t b = 0; b < weight.cols / weight.block_size; b++) scales[b] = scale_of(weight, row, b);
    }

    void check_scales(const Weight& weight, int64_t row, std::string_view where) const override {
        for (int64_t b = 0; b < weight.cols / weight.block_size; b++) {
            const float scale = scale_of(weight, row, b);
            if (!std::isfinite(scale)) storage::fail_scale(where, row, b * weight.block_size, "scale (absmax)", scale);
        }
    }

private:
    static const uint8_t* groups(const Weight& weight, int64_t row) {
        return weight.planes[kBnb4PanelsCodes].as<uint8_t>() + row / kRows * weight.cols * kRows / 2;
    }
    static const uint8_t* row_places(const Weight& weight, int64_t row) {
        return weight.planes[kBnb4PanelsPlaces].as<uint8_t>() + row % kRows * kGroup;
    }
    static uint8_t code(const uint8_t* group, uint8_t place) { return (group[place / 2] >> (place % 2 * 4)) & 15; }
    static float scale_of(const Weight& weight, int64_t row, int64_t b) {
        const int64_t blocks = weight.cols / weight.block_size, at = (row / kRows * blocks + b) * kRows + row % kRows;
        if (weight.nested_block_size == 0) return weight.planes[kBnb4PanelsScales].as<float>()[at];
        const float* map = weight.planes[kBnb4PanelsMaps].as<float>() + 16;
        return map[weight.planes[kBnb4PanelsScales].as<uint8_t>()[at]] *
                   weight.planes[kBnb4PanelsNested].as<float>()[(row * blocks + b) / weight.nested_block_size] +
               weight.nested_offset;
    }

    std::string_view name_;
};

template <class T>
T* writable(const Plane& plane) {
    return static_cast<T*>(const_cast<void*>(plane.data));
}

}  // namespace

const Codebook4& nf4_panels_storage() {
    static const Bnb4PanelsStorage storage("nf4_panels");
    return storage;
}

const Codebook4& fp4_panels_storage() {
    static const Bnb4PanelsStorage storage("fp4_panels");
    return storage;
}

bool is_bnb4_panels(const Weight& weight) {
    return weight.storage == &nf4_panels_storage() || weight.storage == &fp4_panels_storage();
}

Weight bnb4_from_panels(const Weight& panels) {
    const auto& source = *static_cast<const Codebook4*>(panels.storage);
    const int64_t blocks = panels.cols / panels.block_size;
    const bool nested = panels.nested_block_size != 0;
    Weight out = panels;
    out.storage = panels.storage == &nf4_panels_storage() ? &nf4_storage() : &fp4_storage();
    out.planes = {};
    out.planes[kBnb4Codes] = allocate_plane(size_t(panels.size() / 2));
    out.planes[kBnb4Absmax] = allocate_plane(size_t(panels.rows * blocks) * (nested ? 1 : sizeof(float)));
    out.planes[kBnb4Map] = allocate_plane(16 * sizeof(float));
    std::memcpy(writable<void>(out.planes[kBnb4Map]), panels.planes[kBnb4PanelsMaps].data, 16 * sizeof(float));
    std::vector<uint8_t> codes(static_cast<size_t>(panels.cols));
    std::vector<float> scales(static_cast<size_t>(blocks));
    for (int64_t row = 0; row < panels.rows; row++) {
        source.unpack_row(panels, row, codes.data(), scales.data(), nullptr);
        uint8_t* to = writable<uint8_t>(out.planes[kBnb4Codes]) + row * panels.cols / 2;
        for (size_t i = 0; i < codes.size(); i += 2) to[i / 2] = uint8_t(codes[i] << 4 | codes[i + 1]);
        if (!nested) {
            std::memcpy(writable<float>(out.planes[kBnb4Absmax]) + row * blocks, scales.data(),
                        scales.size() * sizeof(float));
            continue;
        }
        for (int64_t b = 0; b < blocks; b++)
            writable<uint8_t>(out.planes[kBnb4Absmax])[row * blocks + b] =
                panels.planes[kBnb4PanelsScales].as<uint8_t>()[(row / kRows * blocks + b) * kRows + row % kRows];
    }
    if (nested) {
        out.planes[kBnb4NestedAbsmax] = panels.planes[kBnb4PanelsNested];
        out.planes[kBnb4NestedMap] = allocate_plane(256 * sizeof(float));
        std::memcpy(writable<void>(out.planes[kBnb4NestedMap]), panels.planes[kBnb4PanelsMaps].as<float>() + 16,
                    256 * sizeof(float));
    }
    return out;
}

}  // namespace halfbyte
