// Devices by name.
#include <charconv>
#include <cstdlib>

#include "core/error.h"
#include "device/device.h"
#include "device/isa.h"

namespace halfbyte {

// Each room's one entry; no header of cpu/ or cuda/ is seen here.
namespace cpu {
std::shared_ptr<Device> make_device(const DeviceOptions& options);  // cpu/cpu_device.cpp
}
namespace cuda {
std::shared_ptr<Device> make_device(int index, const DeviceOptions& options);  // cuda/cuda_device.cpp
std::vector<DeviceSummary> list_devices();
size_t uploaded_bytes(const Weight& weight);
}  // namespace cuda

size_t uploaded_bytes(std::string_view device, const Weight& weight) {
    return device.starts_with("cuda") ? cuda::uploaded_bytes(weight) : weight.bytes();
}

std::vector<DeviceSummary> list_devices() {
    std::vector<DeviceSummary> devices{{"cpu", concat("instruction set ", instruction_sets().front())}};
    for (DeviceSummary& device : cuda::list_devices()) devices.push_back(std::move(device));
    return devices;
}

std::shared_ptr<Device> make_device(std::string_view name, const DeviceOptions& options) {
    if (name == "cpu") return cpu::make_device(options);
    if (name == "auto") {
        const char* const chosen = std::getenv("HALFBYTE_DEVICE");
        if (chosen != nullptr && *chosen != '\0') {
            if (std::string_view(chosen) == "auto")
                fail(ErrorCode::invalid_argument, "HALFBYTE_DEVICE: expected the name of a device, found \"auto\"");
            return make_device(chosen, options);
        }
        return cuda::list_devices().front().available ? cuda::make_device(0, options) : cpu::make_device(options);
    }
    if (name == "cuda") return cuda::make_device(0, options);
    constexpr std::string_view kNumbered = "cuda:";
    if (name.starts_with(kNumbered)) {
        int index = -1;
        const char* const end = name.data() + name.size();
        const auto [stop, error] = std::from_chars(name.data() + kNumbered.size(), end, index);
        if (error == std::errc{} && stop == end && index >= 0) return cuda::make_device(index, options);
    }
    fail(ErrorCode::invalid_argument, "device: expected \"cpu\", \"cuda\", \"cuda:N\" or \"auto\", found \"", name, "\"");
}

}  // namespace halfbyte
