// The border between the core and libhalfbyte_cuda.so: one exported function, one table. Plain C types, no exception crosses it,
// nothing in it prints or exits. The plugin holds the kernels and the CUDA runtime; the core decides what runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/commands.h"

namespace halfbyte::cuda {

struct DeviceInfo {
    char name[256];
    int32_t compute_major, compute_minor;
    int32_t multiprocessors;
    uint64_t total_bytes, free_bytes;
    double bytes_per_second;  ///< of its memory, by its clock and bus; 0: not known
};

/// 0 is success; every other value is a CUDA error, whose text last_error() gives.
using Status = int32_t;
constexpr Status kOutOfMemory = 2;  ///< cudaErrorMemoryAllocation

struct Context;  ///< a device, its stream, its pinned staging memory
struct Graph;

struct Plugin {
    uint32_t abi;  ///< kAbi of the plugin
    uint32_t bytes;
    /// 0 where there is none to use: then `reason` gets one clause that says why ("no NVIDIA driver on this machine").
    int32_t (*device_count)(char* reason, size_t reason_bytes);
    Status (*device_info)(int32_t device, DeviceInfo* info);
    Status (*open)(int32_t device, Context** context);
    void (*close)(Context* context);
    /// One text for the last failure on this thread, never null: "an illegal memory access was encountered (gemm)".
    const char* (*last_error)();

    Status (*allocate)(Context* context, size_t bytes, void** memory);  ///< 256-byte aligned
    Status (*release)(Context* context, void* memory);
    Status (*allocate_pinned)(Context* context, size_t bytes, void** memory);
    Status (*release_pinned)(Context* context, void* memory);

    /// Queues what a list of commands says (commands.h).
    Status (*run)(Context* context, const void* commands, size_t bytes);
    /// The same as a graph, which is not run by it.
    Status (*capture)(Context* context, const void* commands, size_t bytes, Graph** graph);
    Status (*run_graph)(Context* context, Graph* graph);
    void (*destroy_graph)(Context* context, Graph* graph);

    /// Comes back when the bytes are there, and with them all that was queued before.
    Status (*copy_to_host)(Context* context, void* host, const void* device, size_t bytes);
    /// Queues a copy; `host` may be changed again when it comes back, but for pinned memory: then when a later mark is reached.
    Status (*copy_to_device)(Context* context, void* device, const void* host, size_t bytes);
    /// Of Sample::scratch.
    size_t (*sample_scratch_bytes)(int32_t count, int32_t vocab);
    /// Marks what was queued so far as `slot` (0 .. kSlots - 1); wait() comes back when it is done.
    Status (*mark)(Context* context, int32_t slot);
    Status (*wait)(Context* context, int32_t slot);
    Status (*synchronize)(Context* context);
};

constexpr int kSlots = 4;

}  // namespace halfbyte::cuda

/// The only symbol of the plugin. Null where it cannot serve `abi`.
extern "C" const halfbyte::cuda::Plugin* halfbyte_cuda_plugin(uint32_t abi);
