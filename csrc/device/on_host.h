// A device with memory of its own, for callers whose arrays are in host memory: the Python functions on numpy arrays.
#pragma once

#include <memory>

#include "device/device.h"

namespace halfbyte {

/// The same ops on Tensors and pointers of host memory: what an op reads is copied to the device, what it writes is copied back.
/// Buffers of allocate() and what was uploaded stay the device's, caches included. The device itself where its memory is the
/// host's.
std::shared_ptr<Device> on_host(std::shared_ptr<Device> device);

}  // namespace halfbyte
