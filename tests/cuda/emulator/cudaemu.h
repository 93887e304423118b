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

void block_barrier(Site site);
void* shared_memory(const void* key, size_t bytes, size_t align);  // one zone a key and block
void* dynamic_shared_memory();
void run_grid(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& body);

bool is_device_pointer(const void* pointer);

// Keeps the race detector from seeing the emulator's own accesses: they are noted by hand.
#define CUDAEMU_UNSEEN __attribute__((no_sanitize("thread")))

// Race detector's hooks (racecheck.cpp); they do nothing in a build without it.
void note_access(const void* address, size_t bytes, bool write, bool atomic, Site site = {nullptr, 0});

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

// --------------------------------------------------------------------------------- cp.async, mma

void async_copy(void* shared_target, const void* global_source, unsigned bytes, unsigned valid_bytes, Site site);
void async_commit();
void async_wait(unsigned groups_left_in_flight);

// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16
inline void load_matrix_x4(uint32_t (&out)[4], const void* row, bool transpose, CUDAEMU_SITE) {
    const Site site{file, line};
    if (reinterpret_cast<uintptr_t>(row) % 16) fault("ldmatrix row is not 16-byte aligned " + describe(site));
    note_access(row, 16, false, false, site);
    struct Request {
        const uint16_t* row;
        uint32_t* out;
        bool transpose;
    } request{static_cast<const uint16_t*>(row), out, transpose};
    warp_collective(~0u, site, request, [](Request** lanes) CUDAEMU_UNSEEN {
        for (int l = 0; l < 32; ++l)
            for (int m = 0; m < 4; ++m) {
                uint16_t pair[2];
                for (int e = 0; e < 2; ++e) {
                    const int r = lanes[l]->transpose ? 2 * (l % 4) + e : l / 4;
                    const int c = lanes[l]->transpose ? l / 4 : 2 * (l % 4) + e;
                    pair[e] = lanes[8 * m + r]->row[c];
                }
                std::memcpy(&lanes[l]->out[m], pair, 4);
            }
    });
}

inline float bf16_bits_to_float(uint16_t bits) {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: d += a * b. Fragment layouts as in the PTX
// manual. Sums in double, rounded once: hardware's order and rounding are not specified.
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    struct Request {
        float* d;
        const uint32_t *a, *b;
    } request{d, a, b};
    warp_collective(~0u, Site{file, line}, request, [&](Request** lanes) {
        float A[16][16], B[16][8];
        for (int l = 0; l < 32; ++l) {
            const int group = l / 4, pair = 2 * (l % 4);
            for (int i = 0; i < 8; ++i) {  // register i/2 holds elements i and i+1 (low half first)
                const int row = group + 8 * ((i / 2) % 2), col = pair + i % 2 + 8 * (i / 4);
                A[row][col] = bf16_bits_to_float(uint16_t(lanes[l]->a[i / 2] >> (16 * (i % 2))));
            }
            for (int i = 0; i < 4; ++i)
                B[pair + i % 2 + 8 * (i / 2)][group] = bf16_bits_to_float(uint16_t(lanes[l]->b[i / 2] >> (16 * (i % 2))));
        }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                const int row = l / 4 + 8 * (i / 2), col = 2 * (l % 4) + i % 2;
                double sum = lanes[l]->d[i];
                for (int k = 0; k < 16; ++k) sum += double(A[row][k]) * double(B[k][col]);
                lanes[l]->d[i] = float(sum);
            }
    });
}

inline float f16_bits_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    struct Request {
        float* d;
        const uint32_t *a, *b;
    } request{d, a, b};
    warp_collective(~0u, Site{file, line}, request, [&](Request** lanes) {
        float A[16][16], B[16][8];
        for (int l = 0; l < 32; ++l) {
            const int group = l / 4, pair = 2 * (l % 4);
            for (int i = 0; i < 8; ++i) {  // register i/2 holds elements i and i+1 (low half first)
                const int row = group + 8 * ((i / 2) % 2), col = pair + i % 2 + 8 * (i / 4);
                A[row][col] = f16_bits_to_float(uint16_t(lanes[l]->a[i / 2] >> (16 * (i % 2))));
            }
            for (int i = 0; i < 4; ++i)
                B[pair + i % 2 + 8 * (i / 2)][group] = f16_bits_to_float(uint16_t(lanes[l]->b[i / 2] >> (16 * (i % 2))));
        }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                const int row = l / 4 + 8 * (i / 2), col = 2 * (l % 4) + i % 2;
                double sum = lanes[l]->d[i];
                for (int k = 0; k < 16; ++k) sum += double(A[row][k]) * double(B[k][col]);
                lanes[l]->d[i] = float(sum);
            }
    });
}

// ----------------------------------------------------------------------------------------- launch

template <class T>
void check_argument(const T& value) {
    if constexpr (std::is_pointer_v<T>)
        if (value && !is_device_pointer(value)) throw Fault("a kernel argument points to host memory");
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments&&... arguments);
cudaError_t record_fault(const Fault& fault);

}  // namespace cudaemu

// -------------------------------------------------------------------------- CUDA's own vocabulary

#undef __shared__  // a plain __shared__ would be one thread's local variable: use HB_SHARED_ARRAY
#define __shared__ static_assert(false, "use HB_SHARED_ARRAY or HB_DYNAMIC_SHARED");
#undef __launch_bounds__
#define __launch_bounds__(...)

#define threadIdx (::cudaemu::self->thread_idx)
#define blockIdx (::cudaemu::block->index)
#define blockDim (::cudaemu::block->size)
#define gridDim (::cudaemu::block->grid)
constexpr int warpSize = 32;

#define CUDAEMU_HERE (::cudaemu::Site{file, line})

inline void __syncthreads(CUDAEMU_SITE) { ::cudaemu::block_barrier(CUDAEMU_HERE); }

inline void __syncwarp(uint32_t mask = ~0u, CUDAEMU_SITE) {
    char nothing;
    ::cudaemu::warp_collective(mask, CUDAEMU_HERE, nothing, [](char**) {});
    if (mask == ~0u) ++::cudaemu::self->warp_epoch;
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, CUDAEMU_SITE) {
    return ::cudaemu::shuffle(mask, value, width, CUDAEMU_HERE,
                              [=](int l) { return (l & ~(width - 1)) | (source & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, CUDAEMU_SITE) {
    return ::cudaemu::shuffle(mask, value, width, CUDAEMU_HERE, [=](int l) {
        const int s = l ^ bits;
        return s / width <= l / width ? s : l;
    });
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, CUDAEMU_SITE) {
    return ::cudaemu::shuffle(mask, value, width, CUDAEMU_HERE,
                              [=](int l) { return l % width + int(delta) < width ? l + int(delta) : l; });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, CUDAEMU_SITE) {
    return ::cudaemu::shuffle(mask, value, width, CUDAEMU_HERE,
                              [=](int l) { return l % width >= int(delta) ? l - int(delta) : l; });
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, CUDAEMU_SITE) {
    struct Request {
        bool vote;
        uint32_t result;
    } request{predicate != 0, 0};
    ::cudaemu::warp_collective(mask, CUDAEMU_HERE, request, [](Request** lanes) {
        uint32_t result = 0;
        for (int i = 0; i < 32; ++i) result |= uint32_t(lanes[i] && lanes[i]->vote) << i;
        for (int i = 0; i < 32; ++i)
            if (lanes[i]) lanes[i]->result = result;
    });
    return request.result;
}
inline int __any_sync(uint32_t mask, int predicate, CUDAEMU_SITE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(uint32_t mask, int predicate, CUDAEMU_SITE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

// Threads are fibers of one OS thread, so a plain read-modify-write is atomic.
template <class T, class Change>
CUDAEMU_UNSEEN T cudaemu_atomic(T* address, Change change) {
    ::cudaemu::note_access(address, sizeof(T), true, true);
    T old;
    std::memcpy(&old, address, sizeof(T));
    const T changed = change(old);
    std::memcpy(address, &changed, sizeof(T));
    return old;
}
template <class T>
T atomicAdd(T* p, T v) {
    return cudaemu_atomic(p, [=](T old) { return T(old + v); });
}
template <class T>
T atomicMax(T* p, T v) {
    return cudaemu_atomic(p, [=](T old) { return std::max(old, v); });
}
template <class T>
T atomicExch(T* p, T v) {
    return cudaemu_atomic(p, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
    return cudaemu_atomic(p, [=](T old) { return old == expected ? v : old; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* p) {
    return *p;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __float_as_uint(float x) {
    uint32_t r;
    std::memcpy(&r, &x, 4);
    return r;
}
inline float __uint_as_float(uint32_t x) {
    float r;
    std::memcpy(&r, &x, 4);
    return r;
}
using std::max;
using std::min;

// ------------------------------------------------------------------------------------------------

namespace cudaemu {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments&&... arguments) {
    std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
    try {
        std::apply([](const auto&... p) { (check_argument(p), ...); }, parameters);
        run_grid(grid, block, dynamic_shared_bytes, [&] { std::apply(kernel, parameters); });
    } catch (const Fault& f) {
        return record_fault(f);
    }
    return cudaSuccess;
}

}  // namespace cudaemu
