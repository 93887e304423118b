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
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

namespace cudaemu {

// ---------------------------------------------------------------------------------- test controls

enum class Order { forward, reverse, random };

// What machine the runtime API finds. Without a driver the version of the driver is 0 and all else is
// cudaErrorInsufficientDriver, as with an old one.
enum class Machine { one_device, no_device, no_driver, old_driver };

struct Options {
    Order order = Order::forward;
    uint64_t seed = 0;                     // for Order::random
    bool allow_exited_at_barrier = false;  // hardware lets exited threads miss a __syncthreads()

    Machine machine = Machine::one_device;
    bool deferred = false;               // streams run as late as they may: at the calls that wait for them
    bool reuse_addresses = true;         // false: what was freed is never given out again, so that later use is seen
    bool host_may_touch_device = false;  // true: device memory is not closed to host code, which saves time
    int multiprocessors = 16;
    size_t memory_limit = 0;  // of all that cudaMalloc gave out; 0: the heap's
    uint64_t fail_call = 0;   // the n-th call from now on (1: the next) fails ...
    cudaError_t fail_with = cudaErrorUnknown;
    bool fail_sticky = false;  // ... and all after it
    uint64_t fail_launch = 0;  // the n-th kernel from now on stops with cudaErrorIllegalAddress, which is sticky
};

struct Statistics {
    uint64_t blocks = 0, threads = 0, switches = 0, barriers = 0, warp_collectives = 0;
};

extern Options options;
extern Statistics statistics;

struct Launch;
/// Called before each kernel runs, where it is set: device memory is open then.
extern std::function<void(const Launch&)> on_launch;

// What a kernel did that CUDA forbids. launch() reports it as cudaErrorLaunchFailure.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};
const std::string& last_fault();

// After a fault every call fails with it, as on a device, until cudaDeviceReset() or this, which leaves memory as it is.
void clear_fault();

// How many calls of the runtime API were made that options.fail_call counts.
uint64_t call_count();

// Reads "order=random,seed=3,deferred,limit=1000000,device=none|no_driver|old_driver,fail=CALL:ERROR[:sticky],fault=LAUNCH,
// no_reuse,open" into options (which it first sets back); false where it holds something else. The environment variable
// CUDAEMU is read so at the first call.
bool configure(const char* text);

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
    unsigned fences = 0;         // how many __threadfence()
    unsigned full_syncs = 0;     // how many barriers and collectives of its whole warp
    unsigned partial_syncs = 0;  // how many other collectives since the last of those
    const char* stack = nullptr;
};

struct Launch {
    const void* kernel;
    dim3 grid, block;
    size_t dynamic_shared_bytes;
    std::function<void()> body;
    const void* parameters;  // where the body keeps them
    size_t parameter_bytes;
};

struct Block {
    dim3 grid, size;
    uint3 index;
    unsigned threads;
    uint64_t serial;               // unique over the process
    uint64_t launch_first_serial;  // serial of the first block of the same launch
    const Launch* launch;
};

extern Thread* self;
extern Block* block;

[[noreturn]] void fault(const std::string& what);  // abandons the launch; call on a CUDA thread
[[noreturn]] void fault(const char* what, Site site);
std::string describe(Site site);

unsigned block_barrier(Site site, bool vote);                      // how many threads of the block voted
void* shared_memory(const void* key, size_t bytes, size_t align);  // one zone a key and block
void* dynamic_shared_memory();
void run_grid(const Launch& launch);
void check_launch(const Launch& launch);
bool allow_dynamic_shared(const void* kernel, size_t bytes);
cudaError_t submit(const Launch& launch, cudaStream_t stream);  // queues it on the stream

bool is_device_pointer(const void* pointer);
bool is_shared_pointer(const void* pointer);

// Keeps the race detector from seeing the emulator's own accesses: they are noted by hand.
#define CUDAEMU_UNSEEN __attribute__((no_sanitize("thread")))

// Race detector's hooks (racecheck.cpp); they do nothing in a build without it.
void note_access(const void* address, size_t bytes, bool write, bool atomic, Site site = {nullptr, 0});
void note_atomic(const void* address);
void note_fence();
// For the table of accesses.h.
void count_access(const void* address, size_t bytes, bool write, Site site);

void check_global(const void* address, size_t bytes, const char* what, Site site);

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
    if (width < 1 || width > 32 || (width & (width - 1))) fault("shuffle width is no power of two", site);
    warp_collective(mask, site, request, [&](Request** lanes) CUDAEMU_UNSEEN {
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
    warp_collective(mask, site, value, [&](T** lanes) CUDAEMU_UNSEEN {
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
const void* host_pointer(const T& value) {
    if constexpr (std::is_pointer_v<T>)
        if (value && !is_device_pointer(value)) return value;
    return nullptr;
}
cudaError_t host_argument();  // "a kernel argument points to host memory"

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, size_t dynamic_shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
    auto parameters = std::make_shared<std::tuple<Parameters...>>(std::forward<Arguments>(arguments)...);
    if (std::apply([](const auto&... p) { return (host_pointer(p) || ...); }, *parameters)) return host_argument();
    // What the body reads lies on the fiber's stack or among the parameters: the race detector knows no other memory of the host.
    const auto body = [kernel, parameters, p = parameters.get()]() CUDAEMU_UNSEEN {
        auto* const local = kernel;
        std::apply(local, *p);
    };
    return submit({reinterpret_cast<const void*>(kernel), grid, size, dynamic_shared_bytes, body, parameters.get(),
                   sizeof *parameters},
                  stream);
}

}  // namespace cudaemu

#include "cudaemu_builtins.h"
#include "cudaemu_math.h"
#include "cudaemu_ptx.h"
