// The greatest number of which given ones are whole multiples.
#pragma once

#include <cstdint>

namespace halfbyte::cpu {

/// The greatest u with values[i] = n_i * u for whole n_i; 0 where it is below `least` or all values are zero. values[count] are
/// finite. The values of a quantised block are small integers times a few scales that share a unit, so that u is large.
float common_unit(const float* values, int64_t count, float least);

}  // namespace halfbyte::cpu
