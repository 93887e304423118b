// cudaemu: runs CUDA C++ kernels on the CPU, so that their logic can be tested without a GPU.
//
// The kernel sources are compiled a second time by a host compiler with this header in place of
// nvcc's built-ins. Each CUDA thread of a block is a fiber that runs until its next synchronising
// call; the order in which threads and blocks run is chosen by a seed. It is a strict machine: what
// CUDA leaves undefined (divergent barriers, lanes missing from a mask, misaligned vector copies,
// reads of unwritten shared memory or of an unfinished cp.async) is reported or made visible.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

namespace cudaemu {

// ---------------------------------------------------------------------------------- test controls

enum class Order { forward, reverse, random };

struct Options {
    Order order = Order::forward;
    uint64_t seed = 0;                     // for Order::random
    bool allow_exited_at_barrier = false;  // hardware lets exited threads miss a __syncthreads()
};

struct Statistics {
    uint64_t blocks = 0, threads = 0, switches = 0, barriers = 0, warp_collectives = 0;
};

extern Options options;
extern Statistics statistics;

// What a kernel did that CUDA forbids. launch() reports it as cudaErrorLaunchFailure.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};
const std::string& last_fault();

// ------------------------------------------------------------------------- the running block

struct Site {
    const char* file;
    int line;
};
#define CUDAEMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct Thread {
    uint3 thread_idx;
    unsigned linear;             // x + y*Dx + z*Dx*Dy: lane = linear % 32, warp = linear / 32
    unsigned barrier_epoch = 0;  // how many __syncthreads() it has passed
    unsigned warp_epoch = 0;     // how many full-warp __syncwarp() it has passed
};

struct Block {
    dim3 grid, size;
    uint3 index;
    unsigned threads;
    uint64_t serial;               // unique over the process
    uint64_t launch_first_serial;  // serial of the first block of the same launch
};

extern Thread* self;
extern Block* block;

[[noreturn]] void fault(const std::string& what);  // abandons the launch; call on a CUDA thread
std::string describe(Site site);

unsigned block_barrier(Site site, bool vote);                      // how many threads of the block voted
void* shared_memory(const void* key, size_t bytes, size_t align);  // one zone a key and block
void* dynamic_shared_memory();
void run_grid(dim3 grid, dim3 size, size_t dynamic_shared_bytes, const std::function<void()>& body);

bool is_device_pointer(const void* pointer);
bool is_shared_pointer(const void* pointer);

// Keeps the race detector from seeing the emulator's own accesses: they are noted by hand.
#define CUDAEMU_UNSEEN __attribute__((no_sanitize("thread")))

// Race detector's hooks (racecheck.cpp); they do nothing in a build without it.
void note_access(const void* address, size_t bytes, bool write, bool atomic, Site site = {nullptr, 0});
void note_atomic(const void* address);
void note_fence();

inline void check_global(const void* address, size_t bytes, const char* what, Site site) {
    if (!is_device_pointer(address)) fault(std::string(what) + " of what is not global memory " + describe(site));
    if (reinterpret_cast<uintptr_t>(address) % std::min(bytes, size_t(16)))
        fault(std::string(what) + " is misaligned " + describe(site));
}

// Lanes named in mask meet here; the last to come runs combine(requests), which may write results
// into every lane's request. requests[lane] is null for lanes outside the mask.
bool arrive_at_collective(uint32_t mask, Site site, void* request, void*** requests);
void leave_collective(uint32_t mask);

template <class Request, class Combine>
void warp_collective(uint32_t mask, Site site, Request& request, Combine&& combine) {
    void** requests = nullptr;
    if (arrive_at_collective(mask, site, &request, &requests)) {
        combine(reinterpret_cast<Request**>(requests));
        leave_collective(mask);
    }
}

inline unsigned lane() { return self->linear % 32; }

template <class T, class SourceOf>
T shuffle(uint32_t mask, T value, int width, Site site, SourceOf source_of) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
    struct Request {
        T value, result;
        int source;
    } request{value, value, source_of(int(lane()))};
    if (width < 1 || width > 32 || (width & (width - 1))) fault("shuffle width is no power of two " + describe(site));
    warp_collective(mask, site, request, [&](Request** lanes) {
        for (int i = 0; i < 32; ++i) {
            if (!lanes[i]) continue;
            const Request* source = lanes[lanes[i]->source];
            if (source)
                lanes[i]->result = source->value;
            else
                std::memset(static_cast<void*>(&lanes[i]->result), 0xff, sizeof(T));  // undefined
        }
    });
    return request.result;
}

// What all lanes of the mask get: combine() over their values.
template <class T, class Combine>
T reduce(uint32_t mask, T value, Site site, Combine combine) {
    warp_collective(mask, site, value, [&](T** lanes) {
        T* first = nullptr;
        for (int i = 0; i < 32; ++i)
            if (lanes[i] && first)
                *first = combine(*first, *lanes[i]);
            else if (lanes[i])
                first = lanes[i];
        for (int i = 0; i < 32; ++i)
            if (lanes[i]) *lanes[i] = *first;
    });
    return value;
}

// ----------------------------------------------------------------------------------------- launch

template <class T>
void check_argument(const T& value) {
    if constexpr (std::is_pointer_v<T>)
        if (value && !is_device_pointer(value)) throw Fault("a kernel argument points to host memory");
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments&&... arguments);
cudaError_t record_fault(const Fault& fault);

}  // namespace cudaemu

#include "cudaemu_builtins.h"
#include "cudaemu_math.h"
#include "cudaemu_ptx.h"

namespace cudaemu {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments&&... arguments) {
    std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
    try {
        std::apply([](const auto&... p) { (check_argument(p), ...); }, parameters);
        run_grid(grid, size, dynamic_shared_bytes, [&] { std::apply(kernel, parameters); });
    } catch (const Fault& f) {
        return record_fault(f);
    }
    return cudaSuccess;
}

}  // namespace cudaemu
