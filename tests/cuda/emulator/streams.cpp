// Streams, events, captures, graphs, copies. Work is done at once, or (Options::deferred) when a call waits for it.
#include <utility>

#include "runtime.h"

namespace cudaemu {

namespace {

CUstream_st default_stream;
std::set<cudaStream_t> streams{&default_stream};
std::set<cudaEvent_t> events;
std::set<cudaGraph_t> graphs;
std::set<cudaGraphExec_t> executables;

// Null where there is no such stream.
CUstream_st* find(cudaStream_t stream) {
    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return &default_stream;
    return streams.count(stream) ? stream : nullptr;
}

cudaError_t execute(const Operation& operation) {
    if (current_fault() != cudaSuccess) return current_fault();
    const cudaError_t error = operation.run ? operation.run() : cudaSuccess;
    if (operation.marker) {
        operation.marker->reached = true;
        operation.marker->time = std::chrono::steady_clock::now();
    }
    return error;
}

cudaError_t drain_until(CUstream_st* stream, const Marker* marker) {
    cudaError_t first = cudaSuccess;
    while (!stream->queue.empty() && !(marker && marker->reached)) {
        const Operation next = std::move(stream->queue.front());
        stream->queue.pop_front();
        const cudaError_t error = execute(next);
        if (first == cudaSuccess) first = error;
    }
    return first;
}

// The default stream and the blocking ones wait for each other.
cudaError_t drain_rivals(const CUstream_st* stream) {
    if (!stream->blocking) return cudaSuccess;
    if (stream != &default_stream) return drain_until(&default_stream, nullptr);
    for (CUstream_st* other : streams)
        if (other != stream && other->blocking)
            if (const cudaError_t error = drain_until(other, nullptr); error != cudaSuccess) return error;
    return cudaSuccess;
}

CUstream_st* blocking_capture() {
    for (CUstream_st* s : streams)
        if (s->capture && s->blocking) return s;
    return nullptr;
}

// Does the queue of some stream hold what must come before the host's next step?
cudaError_t wait_for(cudaStream_t handle) {
    CUstream_st* const stream = find(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->capture) {
        stream->invalidated = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    const cudaError_t error = drain_rivals(stream);
    return error != cudaSuccess ? error : drain_until(stream, nullptr);
}

}  // namespace

cudaError_t enqueue(cudaStream_t handle, Operation operation) {
    CUstream_st* const stream = find(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->capture) {
        stream->capture->operations.push_back(std::move(operation));
        return cudaSuccess;
    }
    if (stream == &default_stream)
        if (CUstream_st* capturing = blocking_capture()) {
            capturing->invalidated = true;
            return cudaErrorStreamCaptureImplicit;
        }
    if (const cudaError_t error = drain_rivals(stream); error != cudaSuccess) return error;
    stream->queue.push_back(std::move(operation));
    return options.deferred ? cudaSuccess : drain_until(stream, nullptr);
}

cudaError_t drain(cudaStream_t stream) { return wait_for(stream); }

cudaError_t drain_all() {
    cudaError_t first = cudaSuccess;
    for (CUstream_st* s : streams)
        if (const cudaError_t error = drain_until(s, nullptr); first == cudaSuccess) first = error;
    return first;
}

bool capture_forbids() {
    bool forbids = false;
    for (CUstream_st* s : streams) {
        if (!s->capture || s->mode == cudaStreamCaptureModeRelaxed) continue;
        if (s->mode == cudaStreamCaptureModeThreadLocal && s->capturing_thread != std::this_thread::get_id()) continue;
        forbids = s->invalidated = true;
    }
    return forbids;
}

void forget_streams() {
    for (CUstream_st* s : streams) {
        s->queue.clear();
        s->capture.reset();
        if (s != &default_stream) delete s;
    }
    streams = {&default_stream};
    for (cudaEvent_t e : events) delete e;
    for (cudaGraph_t g : graphs) delete g;
    for (cudaGraphExec_t g : executables) delete g;
    events.clear();
    graphs.clear();
    executables.clear();
}

}  // namespace cudaemu

using namespace cudaemu;

namespace {

cudaError_t copy_now(void* target, const void* source, size_t bytes) {
    for (const void* p : {static_cast<const void*>(target), source})
        if (is_device_pointer(p) && !inside_allocation(p, bytes)) {
            set_fault(cudaErrorIllegalAddress, "a queued copy touches memory that was freed");
            return cudaErrorIllegalAddress;
        }
    DeviceMemoryOpen open;
    std::memmove(target, source, bytes);
    return cudaSuccess;
}

cudaError_t check_copy(const void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (is_device_pointer(target) != to_device || is_device_pointer(source) != from_device))
        return cudaErrorInvalidValue;
    for (const void* p : {target, source})
        if (is_device_pointer(p) && !inside_allocation(p, bytes)) return cudaErrorInvalidValue;
    return cudaSuccess;
}

}  // namespace

extern "C" {

// ------------------------------------------------------------------------------------------- copies

cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
    return api(
        [=] {
            if (bytes == 0) return cudaSuccess;
            cudaError_t error = check_copy(target, source, bytes, kind);
            if (error == cudaSuccess) error = wait_for(nullptr);
            return error != cudaSuccess ? error : copy_now(target, source, bytes);
        },
        Call::stops_capture);
}
// Host memory that is not pinned is read before the call returns, or written before it returns.
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return api([=] {
        if (bytes == 0) return cudaSuccess;
        const cudaError_t error = check_copy(target, source, bytes, kind);
        CUstream_st* const found = find(stream);
        if (error != cudaSuccess || !found) return error != cudaSuccess ? error : cudaErrorInvalidResourceHandle;
        if (!found->capture && !is_device_pointer(source) && !is_pinned(source, bytes)) {
            const char* const bytes_of_source = static_cast<const char*>(source);
            auto copy = std::make_shared<std::vector<char>>(bytes_of_source, bytes_of_source + bytes);
            return enqueue(stream, {[=] { return copy_now(target, copy->data(), bytes); }, nullptr});
        }
        const cudaError_t queued = enqueue(stream, {[=] { return copy_now(target, source, bytes); }, nullptr});
        if (queued != cudaSuccess || found->capture || is_device_pointer(target) || is_pinned(target, bytes)) return queued;
        return wait_for(stream);
    });
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
    return api([=] {
        if (bytes == 0) return cudaSuccess;
        if (!inside_allocation(target, bytes)) return cudaErrorInvalidValue;
        return enqueue(stream, {[=] {
                                    if (!inside_allocation(target, bytes)) return cudaErrorIllegalAddress;
                                    DeviceMemoryOpen open;
                                    std::memset(target, value, bytes);
                                    return cudaSuccess;
                                },
                                nullptr});
    });
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) { return cudaMemsetAsync(target, value, bytes, nullptr); }

// ------------------------------------------------------------------------------------------ streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
    return api([=] {
        if (flags != cudaStreamDefault && flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
        *out = new CUstream_st;
        (*out)->blocking = flags == cudaStreamDefault;
        streams.insert(*out);
        return cudaSuccess;
    });
}
cudaError_t cudaStreamCreate(cudaStream_t* out) { return cudaStreamCreateWithFlags(out, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int) {
    return cudaStreamCreateWithFlags(out, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {  // its work is still done
    return api([=] {
        if (!stream || !streams.count(stream) || stream == &default_stream) return cudaErrorInvalidResourceHandle;
        const cudaError_t error = drain_until(stream, nullptr);
        streams.erase(stream);
        for (cudaEvent_t e : events)
            if (e->stream == stream) e->stream = nullptr;
        delete stream;
        return error;
    });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return api([=] { return wait_for(stream); });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {  // each time one step of the queue is done, so that asking ends
    return api([=] {
        CUstream_st* const stream = find(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->queue.empty()) return cudaSuccess;
        const Operation next = std::move(stream->queue.front());
        stream->queue.pop_front();
        const cudaError_t error = execute(next);
        return error != cudaSuccess ? error : cudaErrorNotReady;
    });
}
cudaError_t cudaDeviceSynchronize() {
    return api([] { return drain_all(); }, Call::stops_capture);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return api([=] { return enqueue(stream, {[=] { return function(data), cudaSuccess; }, nullptr}); });
}

// ------------------------------------------------------------------------------------------- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned) {
    return api([=] {
        events.insert(*out = new CUevent_st);
        return cudaSuccess;
    });
}
cudaError_t cudaEventCreate(cudaEvent_t* out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return api([=] {
        if (!events.erase(event)) return cudaErrorInvalidResourceHandle;
        delete event;
        return cudaSuccess;
    });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return api([=] {
        CUstream_st* const found = find(stream);
        if (!events.count(event) || !found) return cudaErrorInvalidResourceHandle;
        event->stream = found;
        event->marker = std::make_shared<Marker>();
        event->captured = found->capture != nullptr;
        return enqueue(stream, {nullptr, event->marker});
    });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return api([=] {
        if (!events.count(event)) return cudaErrorInvalidResourceHandle;
        if (event->captured) return cudaErrorStreamCaptureUnsupported;
        if (!event->marker || event->marker->reached || !event->stream) return cudaSuccess;
        return drain_until(event->stream, event->marker.get());
    });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    return api([=] {
        if (!events.count(event)) return cudaErrorInvalidResourceHandle;
        if (event->captured) return cudaErrorStreamCaptureUnsupported;
        if (!event->marker || event->marker->reached || !event->stream) return cudaSuccess;
        const Operation next = std::move(event->stream->queue.front());
        event->stream->queue.pop_front();
        const cudaError_t error = execute(next);
        return error != cudaSuccess ? error : cudaErrorNotReady;
    });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {  // the emulator's own time
    return api([=] {
        if (!events.count(start) || !events.count(end) || !start->marker || !end->marker)
            return cudaErrorInvalidResourceHandle;
        if (!start->marker->reached || !end->marker->reached) return cudaErrorNotReady;
        *milliseconds = std::chrono::duration<float, std::milli>(end->marker->time - start->marker->time).count();
        return cudaSuccess;
    });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    return api([=] {
        CUstream_st* const stream = find(handle);
        if (!events.count(event) || !stream) return cudaErrorInvalidResourceHandle;
        if (!event->marker) return cudaSuccess;
        if (stream->capture || event->captured)  // a capture of several streams is not emulated
            return event->captured && event->stream == stream ? cudaSuccess : cudaErrorStreamCaptureIsolation;
        CUstream_st* const other = event->stream;
        if (other == stream || !other) return cudaSuccess;
        const auto marker = event->marker;
        return enqueue(handle,
                       {[=] { return streams.count(other) ? drain_until(other, marker.get()) : cudaSuccess; }, nullptr});
    });
}

// ------------------------------------------------------------------------------------------- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return api([=] {
        CUstream_st* const stream = find(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream == &default_stream || stream->capture) return cudaErrorStreamCaptureUnsupported;
        stream->capture = std::make_unique<CUgraph_st>();
        stream->invalidated = false;
        stream->mode = mode;
        stream->capturing_thread = std::this_thread::get_id();
        return cudaSuccess;
    });
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
    return api([=] {
        CUstream_st* const stream = find(handle);
        *out = nullptr;
        if (!stream || !stream->capture) return cudaErrorInvalidValue;
        std::unique_ptr<CUgraph_st> graph = std::move(stream->capture);
        if (stream->invalidated) return cudaErrorStreamCaptureInvalidated;
        graphs.insert(*out = graph.release());
        return cudaSuccess;
    });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return api([=] {
        CUstream_st* const stream = find(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        *status = !stream->capture      ? cudaStreamCaptureStatusNone
                  : stream->invalidated ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
    return api([=] {
        if (!graphs.count(graph)) return cudaErrorInvalidValue;
        executables.insert(*out = new CUgraphExec_st{graph->operations});
        return cudaSuccess;
    });
}
cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t) {
    return api([=] { return executables.count(graph) ? cudaSuccess : cudaErrorInvalidValue; });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    return api([=] {
        if (!executables.count(graph)) return cudaErrorInvalidValue;
        return enqueue(stream, {[=] {
                                    if (!executables.count(graph)) return cudaErrorIllegalAddress;
                                    for (const Operation& operation : graph->operations)
                                        if (const cudaError_t error = execute(operation); error != cudaSuccess) return error;
                                    return cudaSuccess;
                                },
                                nullptr});
    });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    return api([=] {
        if (!executables.count(graph)) return cudaErrorInvalidValue;
        const cudaError_t error = drain_all();
        executables.erase(graph);
        delete graph;
        return error;
    });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return api([=] {
        if (!graphs.erase(graph)) return cudaErrorInvalidValue;
        delete graph;
        return cudaSuccess;
    });
}
}
