// Memory of the CPU device: aligned, huge pages where they help, and scratch that a thread keeps.
#pragma once

#include <cstddef>
#include <memory>

namespace halfbyte::cpu {

/// `bytes` (at least 1) of memory aligned to 64 bytes, from 4 MiB on to 2 MiB and in huge pages if the system grants them.
/// Not zeroed. Error out_of_memory.
std::shared_ptr<void> allocate_aligned(size_t bytes);

/// What scratch() is wanted for: each use has a buffer of its own in every thread.
enum class Scratch { quantized, residual, decoded, attention, attention_keys, attention_parts, lora, row, count };

/// A buffer of the calling thread, 64-byte aligned, at least `bytes` long; kept until a larger one is wanted or the thread ends.
void* scratch(Scratch use, size_t bytes);

}  // namespace halfbyte::cpu
