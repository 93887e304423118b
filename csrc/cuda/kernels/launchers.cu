// What the launchers of all kernels know of the machine.
#include "cuda/kernels/launchers.h"

#include <atomic>

namespace halfbyte::cuda {

namespace {
std::atomic<int> multiprocessor_count{132};  // an H100's, until a device is opened
}

int multiprocessors() { return multiprocessor_count.load(std::memory_order_relaxed); }
void set_multiprocessors(int count) { multiprocessor_count.store(count > 0 ? count : 1, std::memory_order_relaxed); }

}  // namespace halfbyte::cuda
