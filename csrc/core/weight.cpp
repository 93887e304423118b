#include "core/weight.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace halfbyte {

Plane allocate_plane(size_t bytes) {
    constexpr size_t kAlignment = 64;
    if (bytes > std::numeric_limits<size_t>::max() - kAlignment) {
        fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes for a weight");
    }
    // At least one line, so that an empty plane is still a plane: its address is not null.
    const size_t rounded = bytes == 0 ? kAlignment : (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) fail(ErrorCode::out_of_memory, "cannot allocate ", bytes, " bytes for a weight");
    std::shared_ptr<const void> owner(memory, [](const void* p) { std::free(const_cast<void*>(p)); });
    std::memset(memory, 0, rounded);
    Plane plane;
    plane.data = memory, plane.bytes = bytes, plane.owner = std::move(owner);
    return plane;
}

void drop_pages(const Plane& plane, int64_t first, int64_t last, int64_t of) {
    if (!plane.mapped || of <= 0 || last <= first) return;
    static const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
    const auto part = [&](int64_t at) { return uintptr_t(double(plane.bytes) * (double(at) / double(of))); };
    const auto data = uintptr_t(plane.data);
    const uintptr_t begin = (data + part(first) + page - 1) / page * page;
    const uintptr_t end = (data + (last == of ? uintptr_t(plane.bytes) : part(last))) / page * page;
    // Advice: where it is not taken the pages only stay.
    if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace halfbyte
