// The part of the CUDA runtime API that host code under test calls: device, memory, errors. streams.cpp has the rest.
#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <map>

namespace cudaemu {

std::recursive_mutex machine;

namespace {

cudaError_t last_error = cudaSuccess, fault_error = cudaSuccess;
std::string last_fault_text;
uint64_t calls = 0;
std::map<char*, size_t> pinned;  // by address
std::set<void*> host_allocations;

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
#define CUDAEMU_ERROR(name, text) {name, #name, text}
constexpr ErrorText kErrors[] = {
    CUDAEMU_ERROR(cudaSuccess, "no error"),
    CUDAEMU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    CUDAEMU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    CUDAEMU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    CUDAEMU_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    CUDAEMU_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    CUDAEMU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    CUDAEMU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    CUDAEMU_ERROR(cudaErrorNotReady, "device not ready"),
    CUDAEMU_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    CUDAEMU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    CUDAEMU_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    CUDAEMU_ERROR(cudaErrorNotSupported, "operation not supported"),
    CUDAEMU_ERROR(cudaErrorHostMemoryAlreadyRegistered, "part or all of the requested memory range is already mapped"),
    CUDAEMU_ERROR(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    CUDAEMU_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    CUDAEMU_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    CUDAEMU_ERROR(cudaErrorStreamCaptureImplicit,
                  "operation would make the legacy stream depend on a capturing blocking stream"),
    CUDAEMU_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    CUDAEMU_ERROR(cudaErrorUnknown, "unknown error"),
};

const ErrorText& lookup(cudaError_t error) {
    for (const ErrorText& e : kErrors)
        if (e.error == error) return e;
    static constexpr ErrorText kOther{cudaErrorUnknown, "cudaErrorOfEmulator", "error that the emulator has no text for"};
    return kOther;
}

cudaError_t machine_error() {
    switch (options.machine) {
        case Machine::no_device: return cudaErrorNoDevice;
        case Machine::no_driver:
        case Machine::old_driver: return cudaErrorInsufficientDriver;
        default: return cudaSuccess;
    }
}

bool configured_from_environment = [] {
    if (const char* text = std::getenv("CUDAEMU"))
        if (!configure(text)) std::fprintf(stderr, "cudaemu: the environment variable CUDAEMU is wrong: %s\n", text);
    return true;
}();

}  // namespace

bool configure(const char* text) {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    options = Options{};
    std::string all = text;
    for (size_t at = 0; at < all.size();) {
        const std::string item = all.substr(at, all.find(',', at) - at);
        at += item.size() + 1;
        const std::string key = item.substr(0, item.find('='));
        const std::string value = key.size() < item.size() ? item.substr(key.size() + 1) : "";
        const uint64_t number = std::strtoull(value.c_str(), nullptr, 10);
        if (key == "order" && (value == "forward" || value == "reverse" || value == "random"))
            options.order = value == "forward" ? Order::forward : value == "reverse" ? Order::reverse : Order::random;
        else if (key == "seed")
            options.seed = number;
        else if (key == "deferred")
            options.deferred = true;
        else if (key == "no_reuse")
            options.reuse_addresses = false;
        else if (key == "open")
            options.host_may_touch_device = true;
        else if (key == "limit")
            options.memory_limit = number;
        else if (key == "multiprocessors")
            options.multiprocessors = int(number);
        else if (key == "fault")
            options.fail_launch = number;
        else if (key == "fail" && value.find(':') != std::string::npos) {
            options.fail_call = number;
            options.fail_with = cudaError_t(std::atoi(value.c_str() + value.find(':') + 1));
            options.fail_sticky = value.size() > 7 && value.rfind(":sticky") == value.size() - 7;
        } else if (key == "device" && value == "none")
            options.machine = Machine::no_device;
        else if (key == "device" && (value == "no_driver" || value == "old_driver"))
            options.machine = value == "no_driver" ? Machine::no_driver : Machine::old_driver;
        else
            return false;
    }
    return true;
}

const std::string& last_fault() { return last_fault_text; }
uint64_t call_count() { return calls; }
cudaError_t current_fault() { return fault_error; }

void set_fault(cudaError_t error, const std::string& text) {
    fault_error = error;
    last_fault_text = text;
}
void clear_fault() {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    fault_error = last_error = cudaSuccess;
    last_fault_text.clear();
}

cudaError_t begin_call(Call kind) {
    if (machine_error() != cudaSuccess) return machine_error();
    ++calls;
    if (options.fail_call && --options.fail_call == 0) {
        if (options.fail_sticky) set_fault(options.fail_with, "made to fail by the test");
        return options.fail_with;
    }
    if (fault_error != cudaSuccess) return fault_error;
    if (kind == Call::stops_capture && capture_forbids()) return cudaErrorStreamCaptureUnsupported;
    return cudaSuccess;
}
cudaError_t end_call(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

cudaError_t host_argument() {
    return api([] {
        set_fault(cudaErrorLaunchFailure, "a kernel argument points to host memory");
        return cudaErrorLaunchFailure;
    });
}

cudaError_t submit(const Launch& launch, cudaStream_t stream) {
    return api([&] {
        try {
            check_launch(launch);
        } catch (const Fault& f) {  // the device goes on
            last_fault_text = f.what();
            return cudaErrorInvalidConfiguration;
        }
        return enqueue(stream, {[launch] {
                                    if (options.fail_launch && --options.fail_launch == 0) {
                                        set_fault(cudaErrorIllegalAddress, "made to fail by the test");
                                        return cudaErrorIllegalAddress;
                                    }
                                    try {
                                        run_grid(launch);
                                    } catch (const Fault& f) {
                                        set_fault(cudaErrorLaunchFailure, f.what());
                                        return cudaErrorLaunchFailure;
                                    }
                                    return cudaSuccess;
                                },
                                nullptr});
    });
}

bool is_pinned(const void* pointer, size_t bytes) {
    char* const p = static_cast<char*>(const_cast<void*>(pointer));
    auto after = pinned.upper_bound(p);
    if (after == pinned.begin()) return false;
    --after;
    return size_t(p - after->first) <= after->second && bytes <= after->second - size_t(p - after->first);
}

}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

// For test programs in other languages that opened the library: see configure().
__attribute__((visibility("default"))) int cudaemu_configure(const char* text) { return configure(text) ? 0 : -1; }
__attribute__((visibility("default"))) uint64_t cudaemu_call_count() { return call_count(); }
__attribute__((visibility("default"))) void cudaemu_clear_fault() { clear_fault(); }
__attribute__((visibility("default"))) uint64_t cudaemu_device_bytes() { return device_bytes_used(); }

// ------------------------------------------------------------------------------------------- errors

cudaError_t cudaGetLastError() {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    return std::exchange(last_error, fault_error);
}
cudaError_t cudaPeekAtLastError() {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    return last_error;
}
const char* cudaGetErrorName(cudaError_t error) { return lookup(error).name; }
const char* cudaGetErrorString(cudaError_t error) {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    if ((error != fault_error || error == cudaSuccess) && error != cudaErrorInvalidConfiguration) return lookup(error).text;
    thread_local std::string text;
    text = std::string(lookup(error).text) + " (" + last_fault_text + ")";
    return text.c_str();
}

// ------------------------------------------------------------------------------------------- device

cudaError_t cudaDriverGetVersion(int* version) {
    const bool none = options.machine == Machine::no_driver, old = options.machine == Machine::old_driver;
    *version = none ? 0 : old ? 11040 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    return api([=] { return *count = 1, cudaSuccess; });
}
cudaError_t cudaSetDevice(int device) {
    return api([=] { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; });
}
cudaError_t cudaGetDevice(int* device) {
    return api([=] { return *device = 0, cudaSuccess; });
}
cudaError_t cudaSetDeviceFlags(unsigned) {
    return api([] { return cudaSuccess; });
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    return api([=] {
        if (device != 0) return cudaErrorInvalidDevice;
        switch (attribute) {
            case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
            case cudaDevAttrComputeCapabilityMinor: *value = 6; break;
            case cudaDevAttrMultiProcessorCount: *value = options.multiprocessors; break;
            case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
            case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 1536; break;
            case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(kSharedLimit); break;
            case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(kSharedOptInLimit); break;
            case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 100 << 10; break;
            case cudaDevAttrWarpSize: *value = 32; break;
            case cudaDevAttrL2CacheSize: *value = 4 << 20; break;
            case cudaDevAttrMemoryClockRate: *value = 8'000'000; break;  // kHz
            case cudaDevAttrGlobalMemoryBusWidth: *value = 256; break;
            case cudaDevAttrClockRate: *value = 1'500'000; break;
            default: return cudaErrorInvalidValue;
        }
        return cudaSuccess;
    });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    return api([=] {
        if (device != 0) return cudaErrorInvalidDevice;
        *properties = cudaDeviceProp{};
        std::snprintf(properties->name, sizeof properties->name, "emulated device");
        properties->major = 8;
        properties->minor = 6;
        properties->multiProcessorCount = options.multiprocessors;
        properties->totalGlobalMem = options.memory_limit ? options.memory_limit : kHeapBytes;
        properties->sharedMemPerBlock = kSharedLimit;
        properties->sharedMemPerBlockOptin = kSharedOptInLimit;
        properties->sharedMemPerMultiprocessor = 100 << 10;
        properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
        properties->warpSize = 32;
        properties->maxThreadsPerBlock = 1024;
        properties->maxThreadsPerMultiProcessor = 1536;
        properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
        properties->maxThreadsDim[2] = 64;
        properties->maxGridSize[0] = 0x7fffffff;
        properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
        properties->l2CacheSize = 4 << 20;
        properties->memoryBusWidth = 256;
        return cudaSuccess;
    });
}
cudaError_t cudaDeviceReset() {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    if (machine_error() != cudaSuccess) return machine_error();
    clear_fault();
    forget_streams();
    free_all_device();
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    return api([=] {
        if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
        const bool right = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value >= 0;
        return right && allow_dynamic_shared(kernel, size_t(value)) ? cudaSuccess : cudaErrorInvalidValue;
    });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared) {
    return api([=] {
        if (threads < 1 || threads > 1024) return cudaErrorInvalidValue;
        *blocks = std::min(1536 / threads, int((100 << 10) / (shared + 1024)));
        return cudaSuccess;
    });
}

// ------------------------------------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** out, size_t bytes) {
    return api(
        [=] {
            *out = nullptr;
            if (bytes == 0) return cudaSuccess;
            *out = allocate_device(bytes);
            return *out ? cudaSuccess : cudaErrorMemoryAllocation;
        },
        Call::stops_capture);
}
cudaError_t cudaFree(void* pointer) {
    return api(
        [=] {
            if (!pointer) return cudaSuccess;
            const cudaError_t error = drain_all();
            return error != cudaSuccess ? error : free_device(pointer) ? cudaSuccess : cudaErrorInvalidValue;
        },
        Call::stops_capture);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    return api([=] {
        *total = options.memory_limit ? options.memory_limit : kHeapBytes - kSharedBytes;
        *free = *total - std::min(*total, device_bytes_used());
        return cudaSuccess;
    });
}
cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
    return api(
        [=] {
            *out = nullptr;
            if (bytes == 0) return cudaSuccess;
            if (posix_memalign(out, 4096, bytes)) return cudaErrorMemoryAllocation;
            host_allocations.insert(*out);
            pinned[static_cast<char*>(*out)] = bytes;
            return cudaSuccess;
        },
        Call::stops_capture);
}
cudaError_t cudaMallocHost(void** out, size_t bytes) { return cudaHostAlloc(out, bytes, 0); }
cudaError_t cudaFreeHost(void* pointer) {
    return api(
        [=] {
            if (!pointer) return cudaSuccess;
            const cudaError_t error = drain_all();
            if (error != cudaSuccess) return error;
            if (!host_allocations.erase(pointer)) return cudaErrorInvalidValue;
            pinned.erase(static_cast<char*>(pointer));
            std::free(pointer);
            return cudaSuccess;
        },
        Call::stops_capture);
}
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    return api(
        [=] {
            if (!pointer || !bytes || is_device_pointer(pointer)) return cudaErrorInvalidValue;
            if (is_pinned(pointer, 1)) return cudaErrorHostMemoryAlreadyRegistered;
            pinned[static_cast<char*>(pointer)] = bytes;
            return cudaSuccess;
        },
        Call::stops_capture);
}
cudaError_t cudaHostUnregister(void* pointer) {
    return api(
        [=] {
            const cudaError_t error = drain_all();
            if (error != cudaSuccess) return error;
            const bool known = !host_allocations.count(pointer) && pinned.erase(static_cast<char*>(pointer));
            return known ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
        },
        Call::stops_capture);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    return api([=] {
        *attributes = cudaPointerAttributes{};
        const bool device = inside_allocation(pointer, 1), host = is_pinned(pointer, 1);
        attributes->type = device ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
        if (device) attributes->devicePointer = const_cast<void*>(pointer);
        if (host) attributes->hostPointer = const_cast<void*>(pointer);
        return cudaSuccess;
    });
}
}
