#include "cpu/panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "cpu/memory.h"

namespace halfbyte::cpu {

namespace {

enum PanelPlane : int {
    kLevels = 0,     // u8, codes or int8 levels
    kScales = 1,     // int16 [panels][blocks][16]
    kOffsets = 2,    // int16, the same shape; empty without offsets
    kRowScales = 3,  // f32 [panels * 16] row_scale, and with offsets another [panels * 16] row_offset_ratio
    kTable = 4,      // int16 [16]; empty: int8 levels
};

class PanelStorage : public Storage {
public:
    explicit PanelStorage(const Isa& isa) : isa_(isa) {}
    const Isa& isa() const { return isa_; }
    std::string_view name() const override { return "panels"; }
    StorageKind kind() const override { return StorageKind::other; }
    void validate(const Weight&, std::string_view) const override {}  // never read from a file
    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const Panels p = view_panels(weight);
        const int64_t panel = row / kPanelRows, lane = row % kPanelRows, blocks = p.cols / p.block;
        for (int64_t k = 0; k < p.cols; k++) {
            const int64_t scale = (panel * blocks + k / p.block) * kPanelRows + lane;
            double value = double(level(p, panel, lane, k)) * p.scales[scale];
            if (p.offsets != nullptr) value += double(p.offsets[scale]) * double(p.row_offset_ratio[row]);
            out[k] = float(value * double(p.row_scale[row]) * double(kScaleShift));
        }
    }

private:
    int level(const Panels& p, int64_t panel, int64_t lane, int64_t k) const {
        if (p.table == nullptr) return int8_t(p.levels[((panel * p.cols + k) / 2 * kPanelRows + lane) * 2 + k % 2]);
        const uint8_t* group = p.levels + (panel * (p.cols / kGroupCols) + k / kGroupCols) * 64;
        const int place = isa_.kernels->nibble_place[lane * kGroupCols + k % kGroupCols];
        return p.table[(group[place / 2] >> (place % 2 * 4)) & 15];
    }
    const Isa& isa_;
};

const PanelStorage& panel_storage(const Isa& isa) {
    static const std::vector<std::unique_ptr<const PanelStorage>> all = [] {
        std::vector<std::unique_ptr<const PanelStorage>> list;
        for (const Isa& each : built_isas()) list.push_back(std::make_unique<const PanelStorage>(each));
        return list;
    }();
    return *all[size_t(&isa - built_isas().data())];
}

Plane make_plane(size_t bytes) {
    Plane plane;
    plane.owner = allocate_aligned(bytes);
    plane.data = plane.owner.get();
    plane.bytes = bytes;
    return plane;
}
template <class T>
T* writable(const Plane& plane) {
    return static_cast<T*>(const_cast<void*>(plane.data));
}

/// Levels as integers of at most `limit`, and what one unit is worth: no rounding at all for Q4_0, Q4_1 and FP4, 1.3e-4 of the
/// root of the mean square for NF4 in blocks of 64. Returns 0 where the levels are all zero or not finite.
double integer_levels(std::span<const float, 16> levels, int limit, int16_t* table) {
    double largest = 0;
    for (const float level : levels) {
        if (!std::isfinite(level)) return 0;
        largest = std::max(largest, std::fabs(double(level)));
    }
    if (largest == 0) return 0;
    double best_error = HUGE_VAL;
    int best = limit;
    for (int top = limit; top > limit / 2; top--) {
        double squares = 0, sum = 0;
        for (const float level : levels) {
            const double exact = double(level) * top / largest, miss = (exact - std::nearbyint(exact)) / top;
            squares += miss * miss, sum += miss;
        }
        // An error that all levels share adds up where activations have a mean: it counts as it does over 64 columns.
        constexpr double kShared = 64;
        const double error = squares / 16 + kShared * (sum / 16) * (sum / 16);
        if (error < best_error * 0.999) best_error = error, best = top;
    }
    for (size_t i = 0; i < 16; i++) table[i] = int16_t(std::nearbyint(double(levels[i]) * best / largest));
    return largest / best;
}

/// Scales of one row as integers; returns what one unit is worth (0 if all are zero, NaN if one is not finite).
float integer_scales(const float* scales, int64_t count, int16_t* out, int64_t out_stride, int64_t repeat) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!std::isfinite(scales[i]))
            largest = NAN;
        else if (std::fabs(scales[i]) > largest)
            largest = std::fabs(scales[i]);
    }
    const double unit = double(largest) / 32767.0;
    for (int64_t i = 0; i < count; i++) {
        const int16_t value = largest > 0 ? int16_t(std::nearbyint(double(scales[i]) / unit)) : int16_t(0);
        for (int64_t j = 0; j < repeat; j++) out[(i * repeat + j) * out_stride] = value;
    }
    return float(unit);
}

}  // namespace

std::optional<Weight> make_panels(const Weight& weight, const Isa& isa, ThreadPool& pool) {
    const StorageKind kind = weight.storage->kind();
    const auto* codebook = kind == StorageKind::codebook4 ? static_cast<const Codebook4*>(weight.storage) : nullptr;
    const auto* bytes = kind == StorageKind::int8_blocks ? static_cast<const Int8Blocks*>(weight.storage) : nullptr;
    if ((codebook == nullptr && bytes == nullptr) || weight.block_size % 32 != 0 || weight.block_size == 0 ||
        weight.cols % weight.block_size != 0 || weight.size() == 0)
        return std::nullopt;
    const int64_t block = weight.block_size % 64 == 0 ? 64 : 32, blocks = weight.cols / block;
    const int64_t own_blocks = weight.cols / weight.block_size, repeat = weight.block_size / block;
    const int64_t panels = (weight.rows + kPanelRows - 1) / kPanelRows, cols = weight.cols;
    const bool has_offsets = codebook != nullptr && codebook->has_offsets();

    Weight out;
    out.rows = weight.rows, out.cols = cols, out.block_size = int32_t(block);
    out.storage = &panel_storage(isa);
    double unit = 1;
    if (codebook != nullptr) {
        out.planes[kTable] = make_plane(16 * sizeof(int16_t));
        unit = integer_levels(codebook->levels(weight), level_max(block), writable<int16_t>(out.planes[kTable]));
        if (unit == 0) return std::nullopt;
    }
    const size_t panel_bytes = size_t(cols) * kPanelRows / (codebook != nullptr ? 2 : 1);
    out.planes[kLevels] = make_plane(size_t(panels) * panel_bytes);
    out.planes[kScales] = make_plane(size_t(panels * blocks) * kPanelRows * sizeof(int16_t));
    if (has_offsets) out.planes[kOffsets] = make_plane(out.planes[kScales].bytes);
    out.planes[kRowScales] = make_plane(size_t(panels) * kPanelRows * sizeof(float) * (has_offsets ? 2 : 1));
    auto* levels = writable<uint8_t>(out.planes[kLevels]);
    auto* scales = writable<int16_t>(out.planes[kScales]);
    auto* offsets = writable<int16_t>(out.planes[kOffsets]);
    auto* row_scales = writable<float>(out.planes[kRowScales]);
    const uint8_t* place = isa.kernels->nibble_place;

    pool.parallel_for(panels, 1, [&](int64_t first, int64_t last) {
        std::vector<uint8_t> codes(static_cast<size_t>(cols));
        std::vector<float> row_scale(static_cast<size_t>(own_blocks)), row_offset(static_cast<size_t>(own_blocks));
        for (int64_t panel = first; panel < last; panel++) {
            uint8_t* to = levels + size_t(panel) * panel_bytes;
            std::memset(to, 0, panel_bytes);
            for (int64_t lane = 0; lane < kPanelRows; lane++) {
                const int64_t row = panel * kPanelRows + lane;
                if (row >= weight.rows) {
                    std::fill(codes.begin(), codes.end(), uint8_t(0));
                    std::fill(row_scale.begin(), row_scale.end(), 0.0f);
                    std::fill(row_offset.begin(), row_offset.end(), 0.0f);
                } else if (codebook != nullptr) {
                    codebook->unpack_row(weight, row, codes.data(), row_scale.data(),
                                         has_offsets ? row_offset.data() : nullptr);
                } else {
                    bytes->unpack_row(weight, row, reinterpret_cast<int8_t*>(codes.data()), row_scale.data());
                }
                if (codebook != nullptr) {
                    const uint8_t* places = place + lane * kGroupCols;
                    for (int64_t k = 0; k < cols; k++) {
                        const int at = places[k % kGroupCols];
                        to[k / kGroupCols * 64 + at / 2] |= uint8_t((codes[size_t(k)] & 15) << (at % 2 * 4));
                    }
                } else {
                    for (int64_t k = 0; k < cols; k++) to[(k / 2 * kPanelRows + lane) * 2 + k % 2] = codes[size_t(k)];
                }
                const int64_t at = panel * blocks * kPanelRows + lane;
                float scale = integer_scales(row_scale.data(), own_blocks, scales + at, kPanelRows, repeat);
                if (has_offsets) {
                    // With all scales zero the row's unit is that of its offsets.
                    const float offset = integer_scales(row_offset.data(), own_blocks, offsets + at, kPanelRows, repeat);
                    if (scale == 0) scale = offset;
                    const double per_level = double(scale) * unit;
                    row_scales[panels * kPanelRows + row] = per_level == 0 ? 0 : float(double(offset) / per_level);
                }
                row_scales[row] = float(double(scale) * unit / double(kScaleShift));
            }
        }
    });
    return out;
}

bool is_panels(const Weight& weight, const Isa& isa) { return weight.storage == &panel_storage(isa); }

bool is_panels(const Weight& weight) { return dynamic_cast<const PanelStorage*>(weight.storage) != nullptr; }

Panels view_panels(const Weight& weight) {
    Panels p;
    p.levels = weight.planes[kLevels].as<uint8_t>();
    p.scales = weight.planes[kScales].as<int16_t>();
    p.offsets = weight.planes[kOffsets].as<int16_t>();
    p.row_scale = weight.planes[kRowScales].as<float>();
    if (p.offsets != nullptr) p.row_offset_ratio = p.row_scale + (weight.rows + kPanelRows - 1) / kPanelRows * kPanelRows;
    p.table = weight.planes[kTable].as<int16_t>();
    p.rows = weight.rows, p.cols = weight.cols, p.block = weight.block_size;
    return p;
}

}  // namespace halfbyte::cpu
