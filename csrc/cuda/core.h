// One opened GPU: its stream, its memory, its queue, and the lock round them. Everything that lives on it keeps it alive.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "cuda/memory.h"
#include "cuda/plugin.h"
#include "cuda/queue.h"
#include "device/device.h"

namespace halfbyte::cuda {

class Core : public std::enable_shared_from_this<Core> {
public:
    /// memory_limit: bytes that weights may take; 0: what is free, less a reserve for caches and activations.
    Core(const Plugin& plugin, int index, size_t memory_limit);
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;
    ~Core();

    /// For every use of what is below. Error internal once the device has failed: CUDA's errors are sticky, the process goes on.
    std::unique_lock<std::mutex> lock();
    Queue& queue() { return *queue_; }

    // With the lock held:
    /// Error out_of_memory, after all that is free has been tried.
    void* take(size_t bytes, const char* what);
    void* try_take(size_t bytes);
    void give_back(void* memory) noexcept;
    /// Room that one command uses and the next may use again; grows, at least `bytes`.
    void* scratch(size_t bytes);
    /// The two places through which weights pass that stay in host memory; `bytes` is the greatest so far or less.
    void* passage(size_t bytes);
    void reserve_passage(size_t bytes);
    /// To the host, when all that was queued is done.
    void read(void* host, const void* device, size_t bytes);
    bool fits(size_t bytes) const { return pool_.in_use() + bytes <= weight_limit_; }

    // Without it:
    /// For destructors: nothing is thrown.
    void give_back_later(void* memory) noexcept;
    void release_pinned_later(void* memory) noexcept;
    Buffer buffer(size_t bytes, const char* what);
    void copy_to_device(void* device, const void* host, size_t bytes);
    void copy_to_host(void* host, const void* device, size_t bytes);

    const Plugin& plugin() const { return plugin_; }
    Context* context() const { return context_; }
    const DeviceInfo& info() const { return info_; }
    float* partials() const { return partials_; }
    uint32_t* counters() const { return counters_; }

private:
    const Plugin& plugin_;
    Context* context_ = nullptr;
    DeviceInfo info_{};
    std::mutex mutex_;
    MemoryPool pool_;
    std::unique_ptr<Queue> queue_;
    size_t weight_limit_ = 0;
    float* partials_ = nullptr;
    uint32_t* counters_ = nullptr;
    void* scratch_ = nullptr;
    size_t scratch_bytes_ = 0;
    void* passages_[2] = {};
    size_t passage_bytes_ = 0;
    int passage_ = 0;
};

}  // namespace halfbyte::cuda
