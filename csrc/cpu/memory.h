// Memory of the CPU device: aligned, huge pages where they help, and scratch that a thread keeps.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>

namespace halfbyte::cpu {

/// `bytes` (at least 1) of memory aligned to 64 bytes, from 4 MiB on to 2 MiB and in huge pages if the system grants them.
/// Not zeroed. Error out_of_memory.
std::shared_ptr<void> allocate_aligned(size_t bytes);

/// Memory for the weights of a model: many pieces in few allocations, so that small matrices lie in huge pages as well (a
/// matrix of 2 MiB was read 10 % slower from pages of 4 KiB). An allocation lives as long as one of its pieces. Thread-safe.
class WeightMemory {
public:
    /// As allocate_aligned().
    std::shared_ptr<void> allocate(size_t bytes);

private:
    std::mutex mutex_;
    std::shared_ptr<char> slab_;
    size_t size_ = 0, used_ = 0;
};

/// What scratch() is wanted for: each use has a buffer of its own in every thread.
enum class Scratch { quantized, residual, decoded, attention, attention_keys, attention_parts, lora, row, unpacked, count };

/// A buffer of the calling thread, 64-byte aligned, at least `bytes` long; kept until a larger one is wanted or the thread ends.
void* scratch(Scratch use, size_t bytes);

}  // namespace halfbyte::cpu
