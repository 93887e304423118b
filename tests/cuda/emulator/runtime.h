// The state behind the runtime API: what runtime.cpp (device, memory, errors) and streams.cpp share. Not for tests or kernels.
#pragma once

#include <chrono>
#include <deque>
#include <set>
#include <thread>
#include <vector>

#include "internal.h"

namespace cudaemu {

// Set when the stream gets that far.
struct Marker {
    bool reached = false;
    std::chrono::steady_clock::time_point time;
};

struct Operation {
    std::function<cudaError_t()> run;
    std::shared_ptr<Marker> marker;  // may be null
};

}  // namespace cudaemu

struct CUgraph_st {
    std::vector<cudaemu::Operation> operations;
};
struct CUgraphExec_st {
    std::vector<cudaemu::Operation> operations;
};
struct CUstream_st {
    bool blocking = true;  // waits for the default stream, and that for it
    std::deque<cudaemu::Operation> queue;
    std::unique_ptr<CUgraph_st> capture;
    bool invalidated = false;  // the capture, by a call that it forbids
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id capturing_thread;
};
struct CUevent_st {
    cudaStream_t stream = nullptr;
    std::shared_ptr<cudaemu::Marker> marker;
    bool captured = false;
};

namespace cudaemu {

enum class Call { plain, stops_capture };  // stops_capture: one that a capture in global mode forbids

// Whether a call may go on: a machine without a device, a fault before it, what the test injects.
cudaError_t begin_call(Call kind);
cudaError_t end_call(cudaError_t error);  // remembers it for cudaGetLastError()

template <class F>
cudaError_t api(F&& body, Call kind = Call::plain) {
    const std::lock_guard<std::recursive_mutex> lock(machine);
    const cudaError_t error = begin_call(kind);
    return end_call(error != cudaSuccess ? error : body());
}

void set_fault(cudaError_t error, const std::string& text);  // sticky
cudaError_t current_fault();

cudaError_t enqueue(cudaStream_t stream, Operation operation);
cudaError_t drain(cudaStream_t stream);
cudaError_t drain_all();
bool capture_forbids();  // and invalidates the captures that do
void forget_streams();
bool is_pinned(const void* pointer, size_t bytes);

}  // namespace cudaemu
