#include "core/weight.h"

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
    return Plane{memory, bytes, std::move(owner)};
}

}  // namespace halfbyte
