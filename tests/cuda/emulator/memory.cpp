// Device memory: one reserved range, given out with red zones between.
#include <sys/mman.h>

#include <cstdlib>
#include <map>

#include "internal.h"

namespace cudaemu {

char* const heap = [] {
    void* p = mmap(nullptr, kHeapBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    mprotect(p, kSharedBytes, PROT_READ | PROT_WRITE);
    return static_cast<char*>(p);
}();

bool is_shared_pointer(const void* p) { return p >= heap && p < heap + kSharedBytes; }
bool is_device_pointer(const void* p) { return p >= heap + kSharedBytes && p < heap + kHeapBytes; }

namespace {

// Both by address. An allocation's range is rounded up to 256 bytes and has a red zone behind.
std::map<char*, size_t> allocations, holes{{heap + kSharedBytes + kRedZone, kHeapBytes - kSharedBytes - kRedZone}};
size_t used = 0;
char* highest = heap + kSharedBytes;  // nothing was given out from here on
int open_depth = 0;
bool opened = false;

size_t room(size_t bytes) { return (bytes + 255) / 256 * 256 + kRedZone; }

void protect(bool open) {
    if (open == opened) return;
    mprotect(heap + kSharedBytes, size_t(highest - heap) - kSharedBytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
    opened = open;
}

void add_hole(char* start, size_t bytes) {
    auto next = holes.lower_bound(start);
    if (next != holes.end() && start + bytes == next->first) {
        bytes += next->second;
        next = holes.erase(next);
    }
    if (next != holes.begin()) {
        const auto before = std::prev(next);
        if (before->first + before->second == start) {
            before->second += bytes;
            return;
        }
    }
    holes[start] = bytes;
}

void give_back(std::map<char*, size_t>::iterator allocation) {
    const auto [start, bytes] = *allocation;
    ASAN_POISON_MEMORY_REGION(start, bytes);
    used -= room(bytes) - kRedZone;
    allocations.erase(allocation);
    char* const page = heap + (size_t(start - heap) + 4095) / 4096 * 4096;
    char* const end = heap + size_t(start + bytes - heap) / 4096 * 4096;
    if (page < end) madvise(page, size_t(end - page), MADV_DONTNEED);
    if (options.reuse_addresses) add_hole(start, room(bytes));
}

}  // namespace

DeviceMemoryOpen::DeviceMemoryOpen() {
    if (open_depth++ == 0) protect(true);
}
DeviceMemoryOpen::~DeviceMemoryOpen() {
    if (--open_depth == 0 && !options.host_may_touch_device) protect(false);
}

void* allocate_device(size_t bytes) {
    if (options.memory_limit && used + bytes > options.memory_limit) return nullptr;
    auto hole = holes.begin();
    while (hole != holes.end() && hole->second < room(bytes)) ++hole;
    if (hole == holes.end()) return nullptr;
    char* const start = hole->first;
    const size_t left = hole->second - room(bytes);
    holes.erase(hole);
    if (left) holes[start + room(bytes)] = left;
    allocations[start] = bytes;
    used += room(bytes) - kRedZone;
    protect(false);
    // Whole pages: mprotect() knows no others.
    highest = std::max(highest, heap + (size_t(start - heap) + room(bytes) + 4095) / 4096 * 4096);
    if (options.host_may_touch_device) protect(true);
    DeviceMemoryOpen open;
    ASAN_UNPOISON_MEMORY_REGION(start, bytes);
    std::memset(start, 0xff, bytes);  // NaN as float, half or bfloat16
    ASAN_POISON_MEMORY_REGION(start + bytes, room(bytes) - bytes);
    return start;
}

bool free_device(void* pointer) {
    const auto found = allocations.find(static_cast<char*>(pointer));
    if (found == allocations.end()) return false;
    give_back(found);
    return true;
}

void free_all_device() {
    while (!allocations.empty()) give_back(allocations.begin());
}

size_t device_bytes_used() { return used; }

bool inside_allocation(const void* pointer, size_t bytes) {
    char* const p = static_cast<char*>(const_cast<void*>(pointer));
    auto after = allocations.upper_bound(p);
    if (after == allocations.begin()) return false;
    --after;
    return size_t(p - after->first) <= after->second && bytes <= after->second - size_t(p - after->first);
}

}  // namespace cudaemu
