#include "cuda/weights.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "cuda/core.h"
#include "cuda/tiles.h"
#include "storage/storage.h"

namespace halfbyte::cuda {

namespace {

constexpr size_t kPieceBytes = size_t(16) << 20;  // packed at a time while the piece before it is on its way
constexpr int kFirstUploadSlot = 2, kUploadSlots = 2;
static_assert(kFirstUploadSlot + kUploadSlots <= kSlots);

class TilesStorage final : public Storage {
public:
    std::string_view name() const override { return "cuda tiles"; }
    StorageKind kind() const override { return StorageKind::other; }
    void validate(const Weight&, std::string_view) const override {}
    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const Weight& source = device_weight(weight).source;
        source.storage->decode_row(source, row, out);
    }
};

size_t rounded_up(size_t value) { return (value + 255) / 256 * 256; }

/// Where what is not codes lies in DeviceWeight::rest.
struct Rest {
    size_t scales = 0, offsets = 0, levels = 0, nested_levels = 0, nested_scales = 0, bytes = 0;
    explicit Rest(const TiledPlanes& plan) {
        const auto next = [&](size_t size) {
            const size_t at = bytes;
            bytes += rounded_up(size);
            return at;
        };
        scales = next(plan.scale_bytes());
        offsets = next(plan.offset_bytes());
        levels = next(sizeof plan.levels);
        nested_levels = next(plan.nested_levels != nullptr ? 256 * sizeof(float) : 0);
        nested_scales = next(plan.nested_scales != nullptr ? size_t(plan.nested_count) * sizeof(float) : 0);
    }
};

/// Two pieces of pinned memory: one is packed by the pool while the other is on its way.
class Pieces {
public:
    explicit Pieces(Core& core) : core_(core) {}
    Pieces(const Pieces&) = delete;
    Pieces& operator=(const Pieces&) = delete;
    ~Pieces() {
        for (int i = 0; i < kUploadSlots; i++) {
            if (memory_[i] == nullptr) continue;
            if (in_flight_[i]) core_.plugin().wait(core_.context(), kFirstUploadSlot + i);
            core_.plugin().release_pinned(core_.context(), memory_[i]);
        }
    }
    char* next(size_t bytes) {
        current_ = (current_ + 1) % kUploadSlots;
        if (in_flight_[current_])
            core_.queue().checked(core_.plugin().wait(core_.context(), kFirstUploadSlot + current_), "uploading a weight");
        in_flight_[current_] = false;
        if (bytes > bytes_[current_]) {
            if (memory_[current_] != nullptr)
                core_.queue().checked(core_.plugin().release_pinned(core_.context(), memory_[current_]), "pinned memory");
            memory_[current_] = nullptr, bytes_[current_] = 0;
            core_.queue().checked(core_.plugin().allocate_pinned(core_.context(), bytes, &memory_[current_]),
                                  "pinned memory");
            bytes_[current_] = bytes;
        }
        return static_cast<char*>(memory_[current_]);
    }
    /// Part of the piece goes to the device.
    void send(void* to, const char* from, size_t bytes) {
        if (bytes > 0)
            core_.queue().checked(core_.plugin().copy_to_device(core_.context(), to, from, bytes), "uploading a weight");
    }
    void mark() {
        core_.queue().checked(core_.plugin().mark(core_.context(), kFirstUploadSlot + current_), "uploading a weight");
        in_flight_[current_] = true;
    }

private:
    Core& core_;
    void* memory_[kUploadSlots] = {};
    size_t bytes_[kUploadSlots] = {};
    bool in_flight_[kUploadSlots] = {};
    int current_ = 0;
};

TiledWeight tiles_of(const TiledPlanes& plan, const DeviceWeight& weight, const Rest& rest) {
    const char* const base = static_cast<const char*>(weight.rest);
    const auto floats = [&](size_t at) { return reinterpret_cast<const float*>(base + at); };
    return tiled_weight(plan, weight.codes, plan.tile_scales > 0 ? base + rest.scales : nullptr,
                        plan.tile_offsets > 0 ? floats(rest.offsets) : nullptr, floats(rest.levels),
                        plan.nested_levels != nullptr ? floats(rest.nested_levels) : nullptr,
                        plan.nested_scales != nullptr ? floats(rest.nested_scales) : nullptr);
}

/// All row tiles, piece by piece: packed by the pool into `piece`, and sent from there unless codes go to pinned memory.
void pack_and_send(Core& core, const Weight& source, const TiledPlanes& plan, DeviceWeight& out, const Rest& rest,
                   ThreadPool& pool) {
    const int64_t tiles = plan.row_tiles;
    const size_t code_bytes = plan.tile_codes, scale_bytes = plan.tile_scales, offset_bytes = plan.tile_offsets;
    const bool streamed = out.pinned != nullptr;
    const size_t per_tile = (streamed ? 0 : code_bytes) + scale_bytes + offset_bytes;
    const int64_t per_piece = std::clamp<int64_t>(int64_t(kPieceBytes / std::max<size_t>(per_tile, 1)), 1, tiles);
    Pieces pieces(core);
    for (int64_t first = 0; first < tiles; first += per_piece) {
        const int64_t count = std::min(per_piece, tiles - first);
        char* const piece = pieces.next(std::max<size_t>(per_tile, 1) * size_t(per_piece));
        char* const scales = piece;
        char* const offsets = scales + scale_bytes * size_t(count);
        char* const codes =
            streamed ? static_cast<char*>(out.pinned) + code_bytes * size_t(first) : offsets + offset_bytes * size_t(count);
        pool.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
            pack_row_tiles(source, plan, first + begin, first + end, codes + code_bytes * size_t(begin),
                           scale_bytes > 0 ? scales + scale_bytes * size_t(begin) : nullptr,
                           offset_bytes > 0 ? reinterpret_cast<float*>(offsets + offset_bytes * size_t(begin)) : nullptr);
        });
        char* const base = static_cast<char*>(out.rest);
        pieces.send(base + rest.scales + scale_bytes * size_t(first), scales, scale_bytes * size_t(count));
        pieces.send(base + rest.offsets + offset_bytes * size_t(first), offsets, offset_bytes * size_t(count));
        if (!streamed)
            pieces.send(static_cast<char*>(out.codes) + code_bytes * size_t(first), codes, code_bytes * size_t(count));
        pieces.mark();
    }
}

}  // namespace

size_t uploaded_bytes(const Weight& weight);
size_t uploaded_bytes(const Weight& weight) {
    const TiledPlanes plan = plan_tiles(weight);
    return plan.code_bytes() + Rest(plan).bytes;
}

const Storage& tiles_storage() {
    static const TilesStorage storage;
    return storage;
}

const DeviceWeight& device_weight(const Weight& weight) {
    if (weight.storage != &tiles_storage()) fail(ErrorCode::internal, "cuda: a weight that was not uploaded to this device");
    return *weight.planes[0].as<DeviceWeight>();
}

DeviceWeight::~DeviceWeight() {
    if (core == nullptr) return;
    core->give_back_later(codes);
    core->give_back_later(rest);
    if (pinned != nullptr) core->release_pinned_later(pinned);
}

Weight WeightUploader::upload(const std::shared_ptr<Core>& core, const Weight& weight, ThreadPool& pool) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    std::shared_ptr<const DeviceWeight> uploaded;
    const void* const key = weight.planes[0].data;
    if (const auto found = known_.find(key); found != known_.end()) {
        uploaded = found->second.lock();
        if (uploaded && (uploaded->source.rows != weight.rows || uploaded->source.cols != weight.cols ||
                         uploaded->source.storage != weight.storage))
            uploaded = nullptr;
    }
    if (!uploaded) {
        const TiledPlanes plan = plan_tiles(weight);
        const Rest rest(plan);
        auto made = std::make_shared<DeviceWeight>();
        made->source = weight;
        made->core = core;
        made->code_bytes = plan.code_bytes();
        {
            const auto held = core->lock();
            core->queue().flush();  // what comes back from the pool may still be read by what was collected
            if (core->fits(made->code_bytes + rest.bytes)) made->codes = core->try_take(made->code_bytes);
            made->rest = core->take(rest.bytes, "scales of a weight");
            if (made->codes == nullptr) {
                core->reserve_passage(made->code_bytes);
                core->queue().checked(core->plugin().allocate_pinned(core->context(), made->code_bytes, &made->pinned),
                                      "pinned memory for a weight that does not fit the device");
                made->host_codes = made->pinned;
            }
        }
        pack_and_send(*core, weight, plan, *made, rest, pool);
        const auto send = [&](size_t at, const float* values, size_t count) {
            if (values != nullptr) core->copy_to_device(static_cast<char*>(made->rest) + at, values, count * sizeof(float));
        };
        send(rest.levels, plan.levels.data(), plan.levels.size());
        send(rest.nested_levels, plan.nested_levels, 256);
        send(rest.nested_scales, plan.nested_scales, size_t(plan.nested_count));
        made->tiles = tiles_of(plan, *made, rest);
        uploaded = made;
        std::erase_if(known_, [](const auto& entry) { return entry.second.expired(); });
        known_[key] = uploaded;
    }
    Weight out;
    out.rows = weight.rows, out.cols = weight.cols;
    out.storage = &tiles_storage();
    out.planes[0].data = uploaded.get();
    out.planes[0].bytes = uploaded->code_bytes;
    out.planes[0].owner = uploaded;
    return out;
}

}  // namespace halfbyte::cuda
