// The lengths that DoRA (arXiv:2402.09353) divides by: of the rows of the base weight with its LoRA added.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "core/weight.h"

namespace halfbyte {

/// out[i] = |W[i, :] + scale * (B A)[i, :]| for w [rows, cols] in host memory, a [rank, cols], b [rows, rank].
std::vector<float> row_lengths(const Weight& w, std::span<const float> a, std::span<const float> b, int64_t rank,
                               float scale, ThreadPool& pool);
/// The same of the columns: out[j] = |W[:, j] + scale * (A B)[:, j]|, a [rows, rank], b [rank, cols].
std::vector<float> column_lengths(const Weight& w, std::span<const float> a, std::span<const float> b, int64_t rank,
                                  float scale, ThreadPool& pool);

}  // namespace halfbyte
