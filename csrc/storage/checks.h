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

/// Error corrupt for a scale or offset that is no number.
template <class Value>
[[noreturn]] void fail_scale(std::string_view where, int64_t row, int64_t column, const char* what, const Value& value) {
    fail(ErrorCode::corrupt, where, ": the ", what, " of row ", row, " from column ", column, " on is ", value,
         ", expected a finite number; the file is damaged");
}

}  // namespace halfbyte::storage
