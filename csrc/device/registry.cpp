// Devices by name.
#include "core/error.h"
#include "device/device.h"

namespace halfbyte {

namespace cpu {
std::shared_ptr<Device> make_device(const DeviceOptions& options);  // cpu/cpu_device.cpp; no header of cpu/ is seen here
}

std::shared_ptr<Device> make_device(std::string_view name, const DeviceOptions& options) {
    if (name == "cpu" || name == "auto") return cpu::make_device(options);
    if (name == "cuda")
        fail(ErrorCode::not_found, "device \"cuda\": this build of halfbyte has no CUDA support; use device=\"cpu\"");
    fail(ErrorCode::invalid_argument, "device: expected \"cpu\", \"cuda\" or \"auto\", found \"", name, "\"");
}

}  // namespace halfbyte
