// What every storage checks before a weight may be used. Private to storage/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "core/weight.h"

namespace halfbyte::storage {

/// rows * cols, checked. Error corrupt where a dimension is negative or the product does not fit.
inline int64_t element_count(const Weight& weight, std::string_view where) {
    int64_t count = 0;
    // 2^59: eight bytes an element still fit in 63 bits.
    if (weight.rows < 0 || weight.cols < 0 || __builtin_mul_overflow(weight.rows, weight.cols, &count) ||
        count > int64_t(1) << 59) {
        fail(ErrorCode::corrupt, where, ": impossible shape [", weight.rows, ", ", weight.cols, "]");
    }
    return count;
}

/// The plane is there and has exactly `expected` bytes. Error corrupt, showing both sizes.
inline void check_plane(const Weight& weight, int index, std::string_view plane, size_t expected, std::string_view where) {
    const Plane& found = weight.planes[size_t(index)];
    if (!found && expected > 0) fail(ErrorCode::corrupt, where, ": ", plane, " is missing");
    if (found.bytes != expected) {
        fail(ErrorCode::corrupt, where, ": shape [", weight.rows, ", ", weight.cols, "] needs ", expected, " bytes of ",
             plane, ", found ", found.bytes);
    }
}

/// GGUF block formats: plane 0 holds rows of whole blocks, `block_bytes` for every 32 elements.
inline void check_blocks_of_32(const Weight& weight, size_t block_bytes, std::string_view where) {
    const int64_t count = element_count(weight, where);
    if (weight.cols % 32 != 0) {
        fail(ErrorCode::corrupt, where, ": rows of ", weight.cols, " elements are not a whole number of blocks of 32");
    }
    if (weight.block_size != 32) fail(ErrorCode::corrupt, where, ": block size ", weight.block_size, ", expected 32");
    check_plane(weight, 0, "data", size_t(count / 32) * block_bytes, where);
}

}  // namespace halfbyte::storage
