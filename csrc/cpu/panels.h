// The layout in which this device multiplies 4-bit and 8-bit weights: 16 rows interleaved (kernels.h, struct Panels).
#pragma once

#include <optional>

#include "core/thread_pool.h"
#include "core/weight.h"
#include "cpu/kernels.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

/// The weight as panels for `isa`; nothing where its storage or shape has none (then it runs through "decode a row, then dot").
std::optional<Weight> make_panels(const Weight& weight, const Isa& isa, ThreadPool& pool);
/// True for a weight that make_panels() made for `isa`.
bool is_panels(const Weight& weight, const Isa& isa);
/// True for a weight that make_panels() made for whatever instruction set.
bool is_panels(const Weight& weight);
Panels view_panels(const Weight& weight);

}  // namespace halfbyte::cpu
