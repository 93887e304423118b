#include "cuda/memory.h"

#include <bit>

namespace halfbyte::cuda {

void MemoryPool::release_all() {
    trim();
    for (void* slab : slabs_) plugin_.release(context_, slab);
    for (const auto& [memory, bytes] : taken_)
        if (bytes > kSmall) plugin_.release(context_, memory);
    slabs_.clear();
    taken_.clear();
    free_small_.clear();
    slab_used_ = kSlab;
    held_ = in_use_ = 0;
}

size_t MemoryPool::rounded(size_t bytes) {
    if (bytes <= kAlignment) return kAlignment;
    // Small ones to a power of two, so that they fit each other's places; large ones to 64 KiB.
    if (bytes <= kSmall) return std::bit_ceil(bytes);
    constexpr size_t kPage = size_t(64) << 10;
    return (bytes + kPage - 1) / kPage * kPage;
}

void* MemoryPool::from_driver(size_t bytes) {
    void* memory = nullptr;
    if (plugin_.allocate(context_, bytes, &memory) != 0) return nullptr;
    held_ += bytes;
    return memory;
}

void* MemoryPool::take(size_t bytes) {
    const size_t size = rounded(bytes);
    void* memory = nullptr;
    size_t got = size;
    if (size <= kSmall) {
        std::vector<void*>& same = free_small_[size];
        if (!same.empty()) {
            memory = same.back();
            same.pop_back();
        } else {
            if (slab_used_ + size > kSlab) {
                void* const slab = from_driver(kSlab);
                if (slab == nullptr) return nullptr;
                slabs_.push_back(slab);
                slab_used_ = 0;
            }
            memory = static_cast<char*>(slabs_.back()) + slab_used_;
            slab_used_ += size;
        }
    } else if (const auto fits = free_.lower_bound(size); fits != free_.end() && fits->first <= size + size / 4) {
        got = fits->first, memory = fits->second;
        free_.erase(fits);
    } else {
        memory = from_driver(size);
        if (memory == nullptr) return nullptr;
    }
    taken_.emplace(memory, got);
    in_use_ += got;
    return memory;
}

void MemoryPool::give_back(void* memory) {
    const auto found = taken_.find(memory);
    if (found == taken_.end()) return;
    const size_t size = found->second;
    taken_.erase(found);
    in_use_ -= size;
    if (size <= kSmall)
        free_small_[size].push_back(memory);
    else
        free_.emplace(size, memory);
}

void MemoryPool::trim() {
    for (const auto& [size, memory] : free_) {
        plugin_.release(context_, memory);
        held_ -= size;
    }
    free_.clear();
}

}  // namespace halfbyte::cuda
