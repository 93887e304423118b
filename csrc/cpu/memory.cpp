#include "cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "core/error.h"

namespace halfbyte::cpu {

std::shared_ptr<void> allocate_aligned(size_t bytes) {
    constexpr size_t kLine = 64, kHugePage = size_t(1) << 21;
    const bool huge = bytes >= 2 * kHugePage;
    const size_t unit = huge ? kHugePage : kLine;
    const size_t rounded = (bytes / unit + (bytes % unit != 0 || bytes == 0)) * unit;
    void* data = rounded < bytes ? nullptr : std::aligned_alloc(unit, rounded);
    if (data == nullptr) fail(ErrorCode::out_of_memory, "cpu: no memory for a buffer of ", bytes, " bytes");
    if (huge) (void)madvise(data, rounded, MADV_HUGEPAGE);  // advice; a system that refuses is only slower
    return {data, [](void* p) { std::free(p); }};
}

std::shared_ptr<void> WeightMemory::allocate(size_t bytes) {
    constexpr size_t kLine = 64, kFirstSlab = size_t(4) << 20, kLargestSlab = size_t(32) << 20;
    if (bytes >= kLargestSlab / 2) return allocate_aligned(bytes);
    const std::lock_guard lock(mutex_);
    const size_t wanted = (bytes / kLine + 1) * kLine;
    if (slab_ == nullptr || used_ + wanted > size_) {
        const size_t size = slab_ == nullptr ? kFirstSlab : std::min(2 * size_, kLargestSlab);
        const size_t grown = std::max(size, wanted);
        slab_ = std::static_pointer_cast<char>(allocate_aligned(grown));
        size_ = grown, used_ = 0;
    }
    char* const piece = slab_.get() + used_;
    used_ += wanted;
    return {slab_, piece};
}

void* scratch(Scratch use, size_t bytes) {
    struct Slot {
        std::shared_ptr<void> data;
        size_t bytes = 0;
    };
    thread_local std::array<Slot, size_t(Scratch::count)> slots;
    Slot& slot = slots[size_t(use)];
    if (slot.bytes < bytes || slot.data == nullptr) {
        slot.data.reset();
        slot.bytes = 0;
        slot.data = allocate_aligned(bytes);
        slot.bytes = bytes;
    }
    return slot.data.get();
}

}  // namespace halfbyte::cpu
