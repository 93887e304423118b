#include "cpu/panels.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "cpu/memory.h"
#include "cpu/words.h"

namespace halfbyte::cpu {

namespace {

enum PanelPlane : int {
    kLevels = 0,   // u8 [panels][cols / 8][bytes of a group]
    kScales = 1,   // [panels][blocks][16] in tables.scale_form, one for each block of the source
    kOffsets = 2,  // the same; empty without offsets
    kTables = 3,   // PanelTables
    kNested = 4,   // f32 second-level scales as in the file; empty but for ScaleForm::nested
};

/// What the planes mean, and what the kernels look up.
struct PanelTables {
    LevelForm level_form = LevelForm::codes;
    ScaleForm scale_form = ScaleForm::f32;
    const Storage* source = nullptr;
    int64_t source_block = 0;
    bool has_offsets = false;
    float levels[16] = {};  // codes: as in the file
    alignas(64) int16_t table[16] = {};
    alignas(16) uint8_t table8[16] = {};
    float unit = 1, unit8 = 1;
    alignas(64) NestedMap nested_map = {};
    int nested_shift = 0;
    float nested_offset = 0;
};

const PanelTables& tables_of(const Weight& weight) { return *weight.planes[kTables].as<PanelTables>(); }

int64_t group_bytes(LevelForm form) { return form == LevelForm::codes ? 64 : form == LevelForm::bytes ? 128 : 256; }

class PanelStorage : public Storage {
public:
    explicit PanelStorage(const Isa& isa) : isa_(isa) {}
    const Isa& isa() const { return isa_; }
    std::string_view name() const override { return "panels"; }
    StorageKind kind() const override { return StorageKind::other; }
    void validate(const Weight&, std::string_view) const override {}  // never read from a file
    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const Panels p = view_panels(weight);
        for (int64_t k = 0; k < p.cols; k++)
            out[k] = float(double(level(p, row, k)) * double(p.unit) * scale(p, p.scales, row, k) +
                           (p.offsets == nullptr ? 0.0 : scale(p, p.offsets, row, k)));
    }
    /// Of a group of codes.
    int code(const Panels& p, int64_t row, int64_t k) const {
        const uint8_t* group = p.levels + (row / kPanelRows * (p.cols / kGroupCols) + k / kGroupCols) * 64;
        const int place = isa_.kernels->nibble_place[row % kPanelRows * kGroupCols + k % kGroupCols];
        return (group[place / 2] >> (place % 2 * 4)) & 15;
    }

private:
    int level(const Panels& p, int64_t row, int64_t k) const {
        const int64_t group = row / kPanelRows * (p.cols / kGroupCols) + k / kGroupCols, lane = row % kPanelRows;
        switch (p.level_form) {
            case LevelForm::codes: return p.table[code(p, row, k)];
            case LevelForm::bytes:
                return p.levels[group * 128 + isa_.kernels->byte_place[lane * kGroupCols + k % kGroupCols]] - kByteBias;
            default: break;
        }
        int16_t word;
        std::memcpy(&word, p.levels + group * 256 + (k % kGroupCols / 2 * kPanelRows + lane) * 4 + k % 2 * 2, sizeof word);
        return word;
    }
    double scale(const Panels& p, const void* plane, int64_t row, int64_t k) const {
        const int64_t blocks = p.cols / p.block / p.scale_repeat, own = k / (p.block * p.scale_repeat);
        const int64_t at = (row / kPanelRows * blocks + own) * kPanelRows + row % kPanelRows;
        switch (p.scale_form) {
            case ScaleForm::f32: return static_cast<const float*>(plane)[at];
            case ScaleForm::f16: return f16_to_f32(static_cast<const uint16_t*>(plane)[at]);
            default: break;
        }
        return double(p.nested_map->values[static_cast<const uint8_t*>(plane)[at]] *
                          p.nested[(row * blocks + own) >> p.nested_shift] +
                      p.nested_offset);
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

Plane make_plane(size_t bytes, WeightMemory& memory) {
    Plane plane;
    plane.owner = memory.allocate(bytes + 64);  // kernels load whole vectors of scales
    plane.data = plane.owner.get();
    plane.bytes = bytes;
    return plane;
}
template <class T>
T* writable(const Plane& plane) {
    return static_cast<T*>(const_cast<void*>(plane.data));
}

/// Levels as integers of at most `limit`, and what one unit is worth: no rounding at all for Q4_0, Q4_1 and FP4, 1.3e-4 of the
/// root of the mean square for NF4 in blocks of 64, 4.7e-3 in bytes. Returns 0 where the levels are all zero or not finite.
double integer_levels(std::span<const float, 16> levels, int limit, int16_t* table) {
    double largest = 0;
    for (const float level : levels) {
        if (!std::isfinite(level)) return 0;
        largest = std::max(largest, std::fabs(double(level)));
    }
    if (largest == 0) return 0;
    double best_error = HUGE_VAL, best = limit;
    // Finer steps where the integers are few: the largest level need not fall on one.
    const double step = limit > 1000 ? 1 : 1.0 / 64;
    for (double top = limit; top > limit / 2; top -= step) {
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

NestedMap make_nested_map(const float* values) {
    NestedMap map;
    float largest = 0;
    for (int i = 0; i < 256; i++) map.values[i] = values[i], largest = std::max(largest, std::fabs(values[i]));
    map.unit = largest == 0 ? 1.0f : largest / 32767.0f;
    for (int i = 0; i < 256; i++) map.words[i] = int16_t(std::nearbyint(values[i] / map.unit));
    return map;
}

/// One row of a weight, taken apart: levels and scales as they will lie in a panel.
struct Row {
    std::vector<uint8_t> levels;         // [cols] codes, or biased bytes
    std::vector<int16_t> words;          // [cols]
    std::vector<float> values;           // [cols] of a float weight
    std::vector<float> scales, offsets;  // [blocks of the source]
    // Of a panel of codes, kPanelRows of each behind one another.
    std::vector<uint8_t> panel_codes;
    std::vector<float> panel_scales, panel_offsets;
};

bool exact_in_f16(std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return f16_to_f32(f32_to_f16(v)) == v; });
}

/// Of bytes: the largest block of the kernels that divides one of the source.
int64_t largest_block(int64_t own) {
    int64_t block = std::min(own, kLargestBlock);
    while (own % block != 0) block -= 32;
    return block;
}

/// Makes the planes of one weight, panel after panel.
class PanelMaker {
public:
    PanelMaker(const Weight& weight, const Isa& isa, WeightMemory& memory) : weight_(weight), isa_(isa), memory_(memory) {}

    std::optional<Weight> make(ThreadPool& pool) {
        if (!prepare()) return std::nullopt;
        out_.planes[kLevels] =
            make_plane(size_t(panels_ * weight_.cols / kGroupCols * group_bytes(tables_->level_form)), memory_);
        allocate_scales();
        std::atomic<bool> good{true}, f16{tables_->scale_form == ScaleForm::f16};
        const auto fill = [&](int64_t first, int64_t last) {
            Row row;
            for (int64_t panel = first; panel < last; panel++)
                if (!fill_panel(panel, row, f16)) good.store(false, std::memory_order_relaxed);
            for (const Plane& plane : weight_.planes)
                if (weight_.storage->in_row_order())
                    drop_pages(plane, first * kPanelRows, std::min(last * kPanelRows, weight_.rows), weight_.rows);
        };
        pool.parallel_for(panels_, 1, fill);
        for (const Plane& plane : weight_.planes)
            if (!weight_.storage->in_row_order()) drop_pages(plane, 0, 1, 1);
        if (!good) return std::nullopt;
        if (tables_->scale_form == ScaleForm::f16 && !f16) {  // a scale has more digits: once more, in float32
            tables_->scale_form = ScaleForm::f32;
            allocate_scales();
            pool.parallel_for(panels_, 1, fill);
        }
        return out_;
    }

    /// The planes of a weight whose rows are interleaved already, as this instruction set wants them. Scales are copied: kernels
    /// may load past their end.
    std::optional<Weight> adopt() {
        if (!prepare()) return std::nullopt;
        if (tables_->scale_form == ScaleForm::f16) tables_->scale_form = ScaleForm::f32;
        out_.planes[kLevels] = weight_.planes[kBnb4PanelsCodes];
        allocate_scales();
        std::memcpy(writable<void>(out_.planes[kScales]), weight_.planes[kBnb4PanelsScales].data,
                    out_.planes[kScales].bytes);
        return out_;
    }

private:
    bool prepare() {
        const StorageKind kind = weight_.storage->kind();
        if (kind == StorageKind::codebook4) codebook_ = static_cast<const Codebook4*>(weight_.storage);
        if (kind == StorageKind::int8_blocks) bytes_ = static_cast<const Int8Blocks*>(weight_.storage);
        if (weight_.size() == 0 || is_panels(weight_)) return false;
        if (FineRows::fits(weight_)) {
            fine_.emplace(weight_);
            codebook_ = nullptr, bytes_ = nullptr;
        }
        const bool blocks = codebook_ != nullptr || bytes_ != nullptr;
        const int64_t cols = weight_.cols;
        const int64_t own = blocks              ? weight_.block_size
                            : fine_.has_value() ? 32
                            : cols % 128 == 0   ? 128
                            : cols % 64 == 0    ? 64
                                                : 32;
        if (own == 0 || own % 32 != 0 || cols % own != 0) return false;
        const int64_t block = bytes_ != nullptr ? largest_block(own) : codebook_ == nullptr ? own : own % 64 == 0 ? 64 : 32;
        panels_ = (weight_.rows + kPanelRows - 1) / kPanelRows, blocks_ = cols / own;

        out_.rows = weight_.rows, out_.cols = cols, out_.block_size = int32_t(block);
        out_.storage = &panel_storage(isa_);
        out_.planes[kTables] = make_plane(sizeof(PanelTables), memory_);
        tables_ = new (writable<void>(out_.planes[kTables])) PanelTables;
        PanelTables& t = *tables_;
        t.source = weight_.storage, t.source_block = own;
        const bool panels = is_bnb4_panels(weight_);
        if (panels) t.source = weight_.storage == &nf4_panels_storage() ? &nf4_storage() : &fp4_storage();
        t.level_form = codebook_ != nullptr ? LevelForm::codes : bytes_ != nullptr ? LevelForm::bytes : LevelForm::words;
        t.has_offsets = codebook_ != nullptr ? codebook_->has_offsets() : bytes_ != nullptr && bytes_->has_offsets();
        if (codebook_ != nullptr) {
            const auto levels = codebook_->levels(weight_);
            std::copy(levels.begin(), levels.end(), t.levels);
            t.unit = float(integer_levels(levels, level_max(block), t.table));
            int16_t table8[16];
            t.unit8 = float(integer_levels(levels, kLevelMax8, table8));
            if (t.unit == 0 || t.unit8 == 0) return false;
            for (int i = 0; i < 16; i++) t.table8[i] = uint8_t(table8[i] + kByteBias);
        }
        if (codebook_ != nullptr && weight_.nested_block_size != 0) {
            t.scale_form = ScaleForm::nested;
            const Plane& nested = weight_.planes[panels ? int(kBnb4PanelsNested) : int(kBnb4NestedAbsmax)];
            t.nested_map = make_nested_map(panels ? weight_.planes[kBnb4PanelsMaps].as<float>() + 16
                                                  : weight_.planes[kBnb4NestedMap].as<float>());
            t.nested_shift = std::countr_zero(unsigned(weight_.nested_block_size));
            t.nested_offset = weight_.nested_offset;
            out_.planes[kNested] = make_plane(nested.bytes, memory_);
            std::memcpy(writable<void>(out_.planes[kNested]), nested.data, nested.bytes);
        } else {
            t.scale_form = blocks ? ScaleForm::f16 : ScaleForm::f32;
        }
        return true;
    }

    void allocate_scales() {
        const size_t size = tables_->scale_form == ScaleForm::f32 ? 4 : tables_->scale_form == ScaleForm::f16 ? 2 : 1;
        out_.planes[kScales] = make_plane(size_t(panels_ * blocks_) * kPanelRows * size, memory_);
        if (tables_->has_offsets) out_.planes[kOffsets] = make_plane(out_.planes[kScales].bytes, memory_);
    }

    bool fill_panel(int64_t panel, Row& row, std::atomic<bool>& f16) const {
        const int64_t cols = weight_.cols, bytes = cols / kGroupCols * group_bytes(tables_->level_form);
        uint8_t* levels = writable<uint8_t>(out_.planes[kLevels]) + panel * bytes;
        std::memset(levels, tables_->level_form == LevelForm::bytes ? kByteBias : 0, size_t(bytes));
        if (codebook_ != nullptr) read_codes(panel * kPanelRows, row);
        for (int64_t lane = 0; lane < kPanelRows; lane++) {
            const int64_t r = panel * kPanelRows + lane;
            if (r < weight_.rows) {
                if (!read_row(r, row)) return false;
                place_levels(levels, lane, row);
            }
            place_scales(panel, lane, r < weight_.rows ? &row : nullptr, r, f16);
        }
        return true;
    }

    void read_codes(int64_t first, Row& row) const {
        const auto cols = size_t(weight_.cols), blocks = size_t(blocks_), rows = size_t(kPanelRows);
        row.panel_codes.resize(rows * cols), row.panel_scales.resize(rows * blocks), row.panel_offsets.resize(rows * blocks);
        codebook_->unpack_rows(weight_, first, std::min<int64_t>(kPanelRows, weight_.rows - first), row.panel_codes.data(),
                               row.panel_scales.data(), row.panel_offsets.data());
    }

    bool read_row(int64_t r, Row& row) const {
        const auto cols = size_t(weight_.cols), blocks = size_t(blocks_);
        row.scales.resize(blocks), row.offsets.resize(blocks);
        if (codebook_ != nullptr) {
            const auto lane = size_t(r % kPanelRows);
            row.levels.resize(cols);
            std::copy_n(row.panel_codes.data() + lane * cols, cols, row.levels.data());
            std::copy_n(row.panel_scales.data() + lane * blocks, blocks, row.scales.data());
            std::copy_n(row.panel_offsets.data() + lane * blocks, blocks, row.offsets.data());
        } else if (bytes_ != nullptr) {
            row.levels.resize(cols);
            bytes_->unpack_row(weight_, r, reinterpret_cast<int8_t*>(row.levels.data()), row.scales.data(),
                               row.offsets.data());
            for (uint8_t& level : row.levels) level ^= uint8_t(kByteBias);
        } else if (fine_.has_value()) {
            row.words.resize(cols);
            return fine_->read(r, row.words.data(), row.scales.data());
        } else {
            row.values.resize(cols), row.words.resize(cols);
            weight_.storage->decode_row(weight_, r, row.values.data());
            return round_row(row.values.data(), weight_.cols, tables_->source_block, row.words.data(), row.scales.data());
        }
        return true;
    }

    void place_levels(uint8_t* to, int64_t lane, const Row& row) const {
        const int64_t groups = weight_.cols / kGroupCols;
        if (codebook_ != nullptr) {
            const uint8_t* places = isa_.kernels->nibble_place + lane * kGroupCols;
            // Where the codes of a row share 4 bytes, they are put together in a register.
            bool together = true;
            int shifts[kGroupCols];
            for (int k = 0; k < kGroupCols; k++) {
                together = together && places[k] / 8 == lane;
                shifts[k] = places[k] % 8 * 4;
            }
            for (int64_t g = 0; g < groups; g++, to += 64) {
                const uint8_t* codes = row.levels.data() + g * kGroupCols;
                if (together) {
                    uint32_t four = 0;
                    for (int k = 0; k < kGroupCols; k++) four |= uint32_t(codes[k] & 15) << shifts[k];
                    for (int i = 0; i < 4; i++) to[4 * lane + i] = uint8_t(four >> (8 * i));
                } else {
                    for (int k = 0; k < kGroupCols; k++)
                        to[places[k] / 2] |= uint8_t((codes[k] & 15) << (places[k] % 2 * 4));
                }
            }
        } else if (bytes_ != nullptr) {
            const uint8_t* places = isa_.kernels->byte_place + lane * kGroupCols;
            for (int64_t g = 0; g < groups; g++, to += 128)
                for (int k = 0; k < kGroupCols; k++) to[places[k]] = row.levels[size_t(g * kGroupCols + k)];
        } else {
            for (int64_t k = 0; k < weight_.cols; k += 2)
                std::memcpy(to + (k / 2 * kPanelRows + lane) * 4, row.words.data() + k, 4);
        }
    }

    void place_scales(int64_t panel, int64_t lane, const Row* row, int64_t r, std::atomic<bool>& f16) const {
        const int64_t first = panel * blocks_ * kPanelRows + lane;
        const auto place = [&](const Plane& plane, const std::vector<float>& values) {
            for (int64_t b = 0; b < blocks_; b++) {
                const float value = row == nullptr ? 0.0f : values[size_t(b)];
                if (tables_->scale_form == ScaleForm::f32)
                    writable<float>(plane)[first + b * kPanelRows] = value;
                else
                    writable<uint16_t>(plane)[first + b * kPanelRows] = f32_to_f16(value);
            }
            if (row != nullptr && tables_->scale_form == ScaleForm::f16 && !exact_in_f16(values))
                f16.store(false, std::memory_order_relaxed);
        };
        if (tables_->scale_form == ScaleForm::nested) {
            const auto* codes = weight_.planes[kBnb4Absmax].as<uint8_t>();
            for (int64_t b = 0; b < blocks_; b++)
                writable<uint8_t>(out_.planes[kScales])[first + b * kPanelRows] =
                    row == nullptr ? uint8_t(0) : codes[r * blocks_ + b];
            return;
        }
        static const std::vector<float> none;
        place(out_.planes[kScales], row == nullptr ? none : row->scales);
        if (tables_->has_offsets) place(out_.planes[kOffsets], row == nullptr ? none : row->offsets);
    }

    const Weight& weight_;
    const Isa& isa_;
    WeightMemory& memory_;
    const Codebook4* codebook_ = nullptr;
    const Int8Blocks* bytes_ = nullptr;
    std::optional<FineRows> fine_;
    PanelTables* tables_ = nullptr;
    int64_t panels_ = 0, blocks_ = 0;  // blocks of the source in a row
    Weight out_;
};

}  // namespace

std::optional<Weight> make_panels(const Weight& weight, const Isa& isa, ThreadPool& pool, WeightMemory& memory) {
    if (is_bnb4_panels(weight)) {
        const bool same =
            std::memcmp(weight.planes[kBnb4PanelsPlaces].data, isa.kernels->nibble_place, kPanelRows * kGroupCols) == 0;
        const bool aligned = reinterpret_cast<uintptr_t>(weight.planes[kBnb4PanelsCodes].data) % 64 == 0;
        if (same && aligned) return PanelMaker(weight, isa, memory).adopt();
        return PanelMaker(bnb4_from_panels(weight), isa, memory).make(pool);
    }
    return PanelMaker(weight, isa, memory).make(pool);
}

bool is_panels(const Weight& weight, const Isa& isa) { return weight.storage == &panel_storage(isa); }

bool is_panels(const Weight& weight) { return dynamic_cast<const PanelStorage*>(weight.storage) != nullptr; }

Panels view_panels(const Weight& weight) {
    const PanelTables& t = tables_of(weight);
    Panels p;
    p.level_form = t.level_form, p.scale_form = t.scale_form;
    p.levels = weight.planes[kLevels].as<uint8_t>();
    p.scales = weight.planes[kScales].data;
    p.offsets = weight.planes[kOffsets].data;
    p.table = t.table, p.table8 = t.table8;
    p.unit = t.unit, p.unit8 = t.unit8;
    p.nested_map = &t.nested_map, p.nested = weight.planes[kNested].as<float>();
    p.nested_shift = t.nested_shift, p.nested_offset = t.nested_offset;
    p.rows = weight.rows, p.cols = weight.cols, p.block = weight.block_size;
    p.scale_repeat = t.source_block / p.block;
    return p;
}

bool can_restore(const Weight& weight) {
    if (!is_panels(weight)) return false;
    const Storage* source = tables_of(weight).source;
    return source == &nf4_storage() || source == &fp4_storage();
}

Weight restore(const Weight& panels) { return bnb4_from_panels(panels_for_file(panels)); }

Weight panels_for_file(const Weight& panels) {
    const PanelTables* t = is_panels(panels) ? &tables_of(panels) : nullptr;
    if (t == nullptr || !can_restore(panels))
        fail(ErrorCode::unsupported, "restore: only panels made of an NF4 or FP4 weight can be put back");
    const Isa& isa = static_cast<const PanelStorage*>(panels.storage)->isa();
    const bool nested = t->scale_form == ScaleForm::nested;
    Weight out;
    out.rows = panels.rows, out.cols = panels.cols, out.block_size = int32_t(t->source_block);
    out.storage = t->source == &nf4_storage() ? &nf4_panels_storage() : &fp4_panels_storage();
    out.planes[kBnb4PanelsCodes] = panels.planes[kLevels];
    out.planes[kBnb4PanelsScales] = panels.planes[kScales];
    if (t->scale_form == ScaleForm::f16) {
        const auto* scales = panels.planes[kScales].as<uint16_t>();
        const size_t count = panels.planes[kScales].bytes / sizeof(uint16_t);
        out.planes[kBnb4PanelsScales] = allocate_plane(count * sizeof(float));
        for (size_t i = 0; i < count; i++) writable<float>(out.planes[kBnb4PanelsScales])[i] = f16_to_f32(scales[i]);
    }
    out.planes[kBnb4PanelsMaps] = allocate_plane((nested ? 16 + 256 : 16) * sizeof(float));
    std::memcpy(writable<void>(out.planes[kBnb4PanelsMaps]), t->levels, sizeof t->levels);
    if (nested) {
        out.nested_block_size = 1 << t->nested_shift, out.nested_offset = t->nested_offset;
        std::memcpy(writable<float>(out.planes[kBnb4PanelsMaps]) + 16, t->nested_map.values, sizeof t->nested_map.values);
        out.planes[kBnb4PanelsNested] = panels.planes[kNested];
    }
    out.planes[kBnb4PanelsPlaces] = allocate_plane(kPanelRows * kGroupCols);
    std::memcpy(writable<void>(out.planes[kBnb4PanelsPlaces]), isa.kernels->nibble_place, kPanelRows * kGroupCols);
    return out;
}

}  // namespace halfbyte::cpu
