// What encode and reorder need to know of the bitsandbytes 4-bit layout. Private to storage/.
#pragma once

#include <cstdint>
#include <span>

#include "core/weight.h"

namespace halfbyte::storage {

/// Elements of the second-level blocks that bitsandbytes makes (functional.py, quantize_4bit).
inline constexpr int kNestedBlockSize = 256;

inline int64_t bnb4_blocks(const Weight& weight) { return (weight.size() + weight.block_size - 1) / weight.block_size; }

/// Scales of blocks first .. first + count - 1 into out[count]: float32, as bitsandbytes computes them.
void bnb4_scales(const Weight& weight, int64_t first, int64_t count, float* out);

/// reorder_rows() for NF4 and FP4. Double-quantised scales become plain float32 ones of the same value.
Weight bnb4_reorder_rows(const Weight& weight, std::span<const int64_t> order);

}  // namespace halfbyte::storage
