// The layout in which this device multiplies weights: integers in blocks, 16 rows interleaved (kernels.h, struct Panels).
#pragma once

#include <optional>

#include "core/thread_pool.h"
#include "core/weight.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

/// The weight as panels for `isa`; nothing where its storage or shape has none (then it runs through "decode a row, then dot").
/// 4-bit codes, bytes and their scales are kept as they are, in another order: restore() undoes it bit for bit. Float weights
/// are rounded to integers with a scale per 32, 64 or 128 columns: 1.7e-4 of relative error or less where they are spread like a
/// normal distribution (a bf16 has 1.6e-3).
std::optional<Weight> make_panels(const Weight& weight, const Isa& isa, ThreadPool& pool, WeightMemory& memory);
/// These panels, made of an NF4 or FP4 weight, as a storage that files hold; make_panels() takes it up again, without a copy of
/// the codes where the order of the instruction set is the same. Error unsupported for others.
Weight panels_for_file(const Weight& panels);
/// True for a weight that make_panels() made for `isa`.
bool is_panels(const Weight& weight, const Isa& isa);
/// True for a weight that make_panels() made for whatever instruction set.
bool is_panels(const Weight& weight);
Panels view_panels(const Weight& weight);
/// The NF4 or FP4 weight of bitsandbytes that these panels were made from, its planes bit for bit. Error unsupported for others.
Weight restore(const Weight& panels);
/// True for panels that restore() takes.
bool can_restore(const Weight& weight);

}  // namespace halfbyte::cpu
