// Device memory that is handed out again instead of given back: after the first steps nothing is allocated any more.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "cuda/plugin.h"

namespace halfbyte::cuda {

/// Not safe for many threads: the device locks. Work that was queued before a release may still use the block; what is queued
/// after the next take of it runs later on the same stream, so that blocks change owners without waiting.
class MemoryPool {
public:
    MemoryPool(const Plugin& plugin, Context* context) : plugin_(plugin), context_(context) {}
    MemoryPool(const MemoryPool&) = delete;
    MemoryPool& operator=(const MemoryPool&) = delete;
    ~MemoryPool() { release_all(); }

    /// 256-byte aligned, or null where there is no room. Small requests share slabs.
    void* take(size_t bytes);
    void give_back(void* memory);
    /// Gives what nobody holds back to the driver.
    void trim();
    /// Everything, what is still taken included.
    void release_all();

    size_t held() const { return held_; }      ///< from the driver
    size_t in_use() const { return in_use_; }  ///< by those who took it

private:
    static constexpr size_t kAlignment = 256, kSmall = size_t(1) << 20, kSlab = size_t(4) << 20;
    static size_t rounded(size_t bytes);
    void* from_driver(size_t bytes);

    const Plugin& plugin_;
    Context* context_;
    std::multimap<size_t, void*> free_;  ///< whole blocks by size
    std::map<size_t, std::vector<void*>> free_small_;
    std::map<void*, size_t> taken_;  ///< rounded sizes
    std::vector<void*> slabs_;
    size_t slab_used_ = kSlab;
    size_t held_ = 0, in_use_ = 0;
};

}  // namespace halfbyte::cuda
