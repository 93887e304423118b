// Small kernels for the emulator's own tests, right and wrong ones. They are compiled with the kernels, so that the race detector
// sees into them.
#pragma once

#include <cuda_runtime.h>

#include <string>

namespace selftest {

/// Launches a kernel of selftest.cpp by its name on blocks of 64 threads; data has 1 << 16 elements. cudaErrorUnknown: no such.
cudaError_t launch(const std::string& kernel, unsigned blocks, float* data, cudaStream_t stream = nullptr,
                   unsigned threads = 64, size_t dynamic_shared_bytes = 0);
const void* find(const std::string& kernel);

}  // namespace selftest
