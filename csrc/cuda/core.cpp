#include "cuda/core.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "cuda/plugin_loader.h"

namespace halfbyte::cuda {

namespace {

constexpr size_t kMiB = size_t(1) << 20;
constexpr size_t kLeastReserve = 256 * kMiB;  // for the KV cache, activations and CUDA itself

Context* open(const Plugin& plugin, int index) {
    Context* context = nullptr;
    check(plugin, plugin.open(index, &context), "opening the device");
    return context;
}

}  // namespace

Core::Core(const Plugin& plugin, int index, size_t memory_limit)
    : plugin_(plugin), context_(open(plugin, index)), pool_(plugin, context_) {
    // From here on the destructor does not run where something throws.
    try {
        check(plugin, plugin.device_info(index, &info_), "asking for the device's properties");
        queue_ = std::make_unique<Queue>(plugin, context_);
        partials_ = static_cast<float*>(take(kPartialFloats * sizeof(float), "split sums"));
        counters_ = static_cast<uint32_t*>(take(kCounters * sizeof(uint32_t), "counters"));
        const std::vector<uint32_t> zeros(kCounters, 0);
        check(plugin, plugin.copy_to_device(context_, counters_, zeros.data(), zeros.size() * sizeof(uint32_t)), "counters");
        const size_t reserve = std::max(kLeastReserve, size_t(info_.total_bytes / 16));
        weight_limit_ = memory_limit != 0 ? memory_limit : info_.free_bytes > reserve ? info_.free_bytes - reserve : 0;
        weight_limit_ += pool_.in_use();
    } catch (...) {
        queue_.reset();
        pool_.release_all();
        plugin_.close(context_);
        context_ = nullptr;
        throw;
    }
}

Core::~Core() {
    queue_.reset();
    pool_.release_all();
    plugin_.close(context_);
}

std::unique_lock<std::mutex> Core::lock() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!queue_->failure().empty())
        fail(ErrorCode::internal, "cuda: the device failed before (", queue_->failure(), "); load the model anew");
    return lock;
}

void* Core::try_take(size_t bytes) {
    if (void* memory = pool_.take(bytes)) return memory;
    queue_->synchronize();
    pool_.trim();
    return pool_.take(bytes);
}

void* Core::take(size_t bytes, const char* what) {
    if (void* memory = try_take(bytes)) return memory;
    fail(ErrorCode::out_of_memory, "cuda: no room for ", (bytes + kMiB - 1) / kMiB, " MiB of ", what, " on ", info_.name,
         ": ", pool_.in_use() / kMiB, " MiB of its ", info_.total_bytes / kMiB,
         " are in use here; use a shorter context, fewer sequences, or a lower limit for weights (device_memory)");
}

void Core::give_back(void* memory) noexcept { pool_.give_back(memory); }

void* Core::scratch(size_t bytes) {
    if (bytes > scratch_bytes_) {
        if (scratch_ != nullptr) pool_.give_back(scratch_);
        scratch_ = nullptr, scratch_bytes_ = 0;
        const size_t grown = std::max(bytes, size_t(4) << 20);
        scratch_ = take(grown, "scratch");
        scratch_bytes_ = grown;
    }
    return scratch_;
}

void Core::reserve_passage(size_t bytes) {
    if (bytes <= passage_bytes_) return;
    for (void*& passage : passages_) {
        if (passage != nullptr) pool_.give_back(passage);
        passage = nullptr;
    }
    passage_bytes_ = 0;
    for (void*& passage : passages_) passage = take(bytes, "passage for weights that stay in host memory");
    passage_bytes_ = bytes;
}

void* Core::passage(size_t bytes) {
    reserve_passage(bytes);
    passage_ = 1 - passage_;
    return passages_[passage_];
}

void Core::give_back_later(void* memory) noexcept {
    if (memory == nullptr) return;
    const std::lock_guard<std::mutex> lock_of_pool(mutex_);
    pool_.give_back(memory);
}

void Core::release_pinned_later(void* memory) noexcept {
    const std::lock_guard<std::mutex> lock_of_pool(mutex_);
    plugin_.synchronize(context_);  // a copy from it may be on its way
    plugin_.release_pinned(context_, memory);
}

Buffer Core::buffer(size_t bytes, const char* what) {
    const auto held = lock();
    Buffer buffer;
    buffer.data = take(std::max<size_t>(bytes, 1), what);
    buffer.bytes = bytes;
    buffer.owner =
        std::shared_ptr<void>(buffer.data, [core = shared_from_this()](void* memory) { core->give_back_later(memory); });
    return buffer;
}

void Core::copy_to_device(void* device, const void* host, size_t bytes) {
    if (bytes == 0) return;
    const auto held = lock();
    queue_->flush();
    queue_->checked(plugin_.copy_to_device(context_, device, host, bytes), "copying to the device");
}

void Core::copy_to_host(void* host, const void* device, size_t bytes) {
    if (bytes == 0) return;
    const auto held = lock();
    read(host, device, bytes);
}

void Core::read(void* host, const void* device, size_t bytes) {
    queue_->flush();
    queue_->checked(plugin_.copy_to_host(context_, host, device, bytes), "copying to the host");
}

}  // namespace halfbyte::cuda
