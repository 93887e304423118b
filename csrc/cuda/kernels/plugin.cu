// What libhalfbyte_cuda.so offers (cuda/plugin.h): the CUDA runtime behind a table of plain functions, and the kernels behind run().
#include "cuda/plugin.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "cuda/kernels/launchers.h"

namespace halfbyte::cuda {

struct Context {
    int32_t device = 0;
    cudaStream_t stream = nullptr;
    cudaEvent_t events[kSlots] = {};
};

struct Graph {
    cudaGraphExec_t executable = nullptr;
};

namespace {

thread_local char error_text[512] = "no error";

/// Keeps the text of an error for last_error(), and clears it in the runtime where it can be cleared.
Status report(cudaError_t error, const char* where) {
    if (error == cudaSuccess) return 0;
    std::snprintf(error_text, sizeof error_text, "%s (%s)", cudaGetErrorString(error), where);
    cudaGetLastError();
    return static_cast<Status>(error);
}

const char* last_error() { return error_text; }

int32_t device_count(char* reason, size_t reason_bytes) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return count;
    cudaGetLastError();
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (error == cudaErrorInsufficientDriver && driver == 0)
        std::snprintf(reason, reason_bytes, "there is no NVIDIA driver on this machine");
    else if (error == cudaErrorInsufficientDriver)
        std::snprintf(reason, reason_bytes,
                      "the NVIDIA driver is for CUDA %d.%d, older than the %d.%d that halfbyte needs: update it",
                      driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (error == cudaSuccess || error == cudaErrorNoDevice)
        std::snprintf(reason, reason_bytes, "there is no NVIDIA GPU on this machine, or CUDA_VISIBLE_DEVICES hides it");
    else
        std::snprintf(reason, reason_bytes, "CUDA does not start: %s", cudaGetErrorString(error));
    return 0;
}

Status device_info(int32_t device, DeviceInfo* info) {
    *info = DeviceInfo{};
    cudaDeviceProp properties;
    if (const Status status = report(cudaGetDeviceProperties(&properties, device), "device properties")) return status;
    std::snprintf(info->name, sizeof info->name, "%s", properties.name);
    info->compute_major = properties.major, info->compute_minor = properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    int clock = 0, width = 0;  // kHz; bits
    if (cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&width, cudaDevAttrGlobalMemoryBusWidth, device) == cudaSuccess)
        info->bytes_per_second = 2.0 * clock * 1e3 * width / 8;
    cudaGetLastError();
    size_t free = 0, total = 0;
    if (const Status status = report(cudaSetDevice(device), "device")) return status;
    if (const Status status = report(cudaMemGetInfo(&free, &total), "free memory")) return status;
    info->free_bytes = free, info->total_bytes = total;
    return 0;
}

void close(Context* context) {
    if (context == nullptr) return;
    cudaSetDevice(context->device);
    for (cudaEvent_t event : context->events)
        if (event != nullptr) cudaEventDestroy(event);
    if (context->stream != nullptr) cudaStreamDestroy(context->stream);
    cudaGetLastError();
    delete context;
}

Status open(int32_t device, Context** out) {
    Context* const context = new (std::nothrow) Context;
    if (context == nullptr) return report(cudaErrorMemoryAllocation, "open");
    context->device = device;
    Status status = report(cudaSetDevice(device), "open");
    cudaDeviceProp properties;
    if (status == 0) status = report(cudaGetDeviceProperties(&properties, device), "open");
    if (status == 0) set_multiprocessors(properties.multiProcessorCount);
    if (status == 0) status = report(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking), "open");
    for (cudaEvent_t& event : context->events)
        if (status == 0) status = report(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "open");
    if (status != 0) {
        close(context);
        return status;
    }
    *out = context;
    return 0;
}

/// Every call names its device: the current one belongs to the calling thread.
Status enter(const Context* context, const char* where) { return report(cudaSetDevice(context->device), where); }

Status allocate(Context* context, size_t bytes, void** memory) {
    if (const Status status = enter(context, "allocate")) return status;
    return report(cudaMalloc(memory, bytes), "allocate");
}

Status release(Context* context, void* memory) {
    if (const Status status = enter(context, "release")) return status;
    return report(cudaFree(memory), "release");
}

Status allocate_pinned(Context* context, size_t bytes, void** memory) {
    if (const Status status = enter(context, "allocate pinned memory")) return status;
    return report(cudaHostAlloc(memory, bytes, cudaHostAllocDefault), "allocate pinned memory");
}

Status release_pinned(Context* context, void* memory) {
    if (const Status status = enter(context, "release pinned memory")) return status;
    return report(cudaFreeHost(memory), "release pinned memory");
}

cudaError_t run(const Copy& copy, cudaStream_t stream) {
    return cudaMemcpyAsync(copy.to, copy.from, copy.bytes,
                           copy.from_host ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice, stream);
}

/// A list holds a command's bytes as far as they are used.
template <class Command>
Status run_one(const char* at, size_t bytes, cudaStream_t stream, const char* name) {
    Command command{};
    std::memcpy(&command, at, bytes < sizeof command ? bytes : sizeof command);
    cudaError_t error = run(command, stream);
    if (error == cudaSuccess) error = cudaPeekAtLastError();
    return report(error, name);
}

Status run_list(Context* context, const void* commands, size_t bytes) {
    const char* at = static_cast<const char*>(commands);
    const char* const end = at + bytes;
    while (at < end) {
        CommandHeader header;
        std::memcpy(&header, at, sizeof header);
        at += sizeof header;
        Status status = 0;
        switch (header.op) {
            case Op::copy: status = run_one<Copy>(at, header.bytes, context->stream, "copy"); break;
            case Op::gemv: status = run_one<Gemv>(at, header.bytes, context->stream, "gemv"); break;
            case Op::gemm: status = run_one<Gemm>(at, header.bytes, context->stream, "gemm"); break;
            case Op::linear_f32: status = run_one<LinearF32>(at, header.bytes, context->stream, "linear_f32"); break;
            case Op::embed: status = run_one<Embed>(at, header.bytes, context->stream, "embed"); break;
            case Op::transform_rows:
                status = run_one<TransformRows>(at, header.bytes, context->stream, "transform_rows");
                break;
            case Op::rope: status = run_one<Rope>(at, header.bytes, context->stream, "rope"); break;
            case Op::add: status = run_one<Add>(at, header.bytes, context->stream, "add"); break;
            case Op::scale_columns:
                status = run_one<ScaleColumns>(at, header.bytes, context->stream, "scale_columns");
                break;
            case Op::gather_rows: status = run_one<GatherRows>(at, header.bytes, context->stream, "gather_rows"); break;
            case Op::scatter_columns:
                status = run_one<ScatterColumns>(at, header.bytes, context->stream, "scatter_columns");
                break;
            case Op::pool: status = run_one<Pool>(at, header.bytes, context->stream, "pool"); break;
            case Op::attention: status = run_one<Attention>(at, header.bytes, context->stream, "attention"); break;
            case Op::store_kv: status = run_one<StoreKv>(at, header.bytes, context->stream, "store_kv"); break;
            case Op::adapt: status = run_one<Adapt>(at, header.bytes, context->stream, "adapt"); break;
            case Op::sample: status = run_one<Sample>(at, header.bytes, context->stream, "sample"); break;
            default: status = report(cudaErrorInvalidValue, "unknown command"); break;
        }
        if (status != 0) return status;
        at += header.bytes;
    }
    return 0;
}

Status run_commands(Context* context, const void* commands, size_t bytes) {
    if (const Status status = enter(context, "run")) return status;
    return run_list(context, commands, bytes);
}

Status capture(Context* context, const void* commands, size_t bytes, Graph** out) {
    if (const Status status = enter(context, "capture")) return status;
    Graph* const graph = new (std::nothrow) Graph;
    if (graph == nullptr) return report(cudaErrorMemoryAllocation, "capture");
    // Thread-local: other threads may allocate meanwhile.
    Status status = report(cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeThreadLocal), "capture");
    if (status == 0) {
        status = run_list(context, commands, bytes);
        cudaGraph_t captured = nullptr;
        const Status ended = report(cudaStreamEndCapture(context->stream, &captured), "capture");
        if (status == 0) status = ended;
        if (status == 0) status = report(cudaGraphInstantiate(&graph->executable, captured, 0), "capture");
        if (captured != nullptr) cudaGraphDestroy(captured);
    }
    if (status != 0) {
        delete graph;
        return status;
    }
    *out = graph;
    return 0;
}

Status run_graph(Context* context, Graph* graph) {
    if (const Status status = enter(context, "run a graph")) return status;
    return report(cudaGraphLaunch(graph->executable, context->stream), "run a graph");
}

void destroy_graph(Context* context, Graph* graph) {
    if (graph == nullptr) return;
    cudaSetDevice(context->device);
    if (graph->executable != nullptr) cudaGraphExecDestroy(graph->executable);
    cudaGetLastError();
    delete graph;
}

Status copy_to_host(Context* context, void* host, const void* device, size_t bytes) {
    if (const Status status = enter(context, "copy to host")) return status;
    if (const Status status =
            report(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, context->stream), "copy to host"))
        return status;
    return report(cudaStreamSynchronize(context->stream), "copy to host");
}

Status copy_to_device(Context* context, void* device, const void* host, size_t bytes) {
    if (const Status status = enter(context, "copy to device")) return status;
    return report(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, context->stream), "copy to device");
}

Status mark(Context* context, int32_t slot) {
    if (const Status status = enter(context, "mark")) return status;
    return report(cudaEventRecord(context->events[slot], context->stream), "mark");
}

Status wait(Context* context, int32_t slot) {
    if (const Status status = enter(context, "wait")) return status;
    return report(cudaEventSynchronize(context->events[slot]), "wait");
}

Status synchronize(Context* context) {
    if (const Status status = enter(context, "synchronize")) return status;
    return report(cudaStreamSynchronize(context->stream), "synchronize");
}

constexpr Plugin kPlugin = {
    kAbi,           sizeof(Plugin), &device_count,    &device_info,          &open,         &close,   &last_error,
    &allocate,      &release,       &allocate_pinned, &release_pinned,       &run_commands, &capture, &run_graph,
    &destroy_graph, &copy_to_host,  &copy_to_device,  &sample_scratch_bytes, &mark,         &wait,    &synchronize,
};

}  // namespace

}  // namespace halfbyte::cuda

extern "C" __attribute__((visibility("default"))) const halfbyte::cuda::Plugin* halfbyte_cuda_plugin(uint32_t abi) {
    return abi == halfbyte::cuda::kAbi ? &halfbyte::cuda::kPlugin : nullptr;
}
