// CUDA's own vocabulary: built-in variables, barriers, warp collectives, atomics, cached loads. Included by cudaemu.h.
#pragma once

#undef __shared__  // a plain __shared__ would be one thread's local variable: use HB_SHARED_ARRAY
#define __shared__ static_assert(false, "use HB_SHARED_ARRAY or HB_DYNAMIC_SHARED");
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __cluster_dims__

#define threadIdx (::cudaemu::self->thread_idx)
#define blockIdx (::cudaemu::block->index)
#define blockDim (::cudaemu::block->size)
#define gridDim (::cudaemu::block->grid)
constexpr int warpSize = 32;

#define CUDAEMU_HERE (::cudaemu::Site{file, line})

// ------------------------------------------------------------------------------- barriers, fences

inline void __syncthreads(CUDAEMU_SITE) { ::cudaemu::block_barrier(CUDAEMU_HERE, false); }
inline int __syncthreads_count(int predicate, CUDAEMU_SITE) {
    return int(::cudaemu::block_barrier(CUDAEMU_HERE, predicate != 0));
}
inline int __syncthreads_or(int predicate, CUDAEMU_SITE) {
    return ::cudaemu::block_barrier(CUDAEMU_HERE, predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, CUDAEMU_SITE) {
    return ::cudaemu::block_barrier(CUDAEMU_HERE, predicate == 0) == 0;
}

inline void __syncwarp(uint32_t mask = ~0u, CUDAEMU_SITE) {
    char nothing = 0;
    ::cudaemu::warp_collective(mask, CUDAEMU_HERE, nothing, [](char**) {});
    if (mask == ~0u) ++::cudaemu::self->warp_epoch;
}

// Fibers run one at a time, so a fence orders nothing here; the race detector wants one on both sides of an atomic that hands
// data from block to block.
inline void __threadfence() { ::cudaemu::note_fence(); }
inline void __threadfence_system() { ::cudaemu::note_fence(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }
#define __trap() ::cudaemu::fault("__trap() " + ::cudaemu::describe({__FILE__, __LINE__}))

// ------------------------------------------------------------------------------ warp collectives

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
    return ::cudaemu::reduce<uint32_t>(mask, uint32_t(predicate != 0) << ::cudaemu::lane(), CUDAEMU_HERE,
                                       [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __any_sync(uint32_t mask, int predicate, CUDAEMU_SITE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(uint32_t mask, int predicate, CUDAEMU_SITE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, CUDAEMU_SITE) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
    struct Request {
        T value;
        uint32_t same;
    } request{value, 0};
    ::cudaemu::warp_collective(mask, CUDAEMU_HERE, request, [](Request** lanes) CUDAEMU_UNSEEN {
        for (int i = 0; i < 32; ++i)
            for (int j = 0; lanes[i] && j < 32; ++j)
                if (lanes[j] && !std::memcmp(&lanes[i]->value, &lanes[j]->value, sizeof(T))) lanes[i]->same |= 1u << j;
    });
    return request.same;
}
template <class T>
uint32_t __match_all_sync(uint32_t mask, T value, int* predicate, CUDAEMU_SITE) {
    *predicate = __match_any_sync(mask, value, file, line) == mask;
    return *predicate ? mask : 0;
}

// sm_80: integers of 32 bits alone.
#define CUDAEMU_REDUCE(name, type, expression)                                                                      \
    inline type __reduce_##name##_sync(uint32_t mask, type value, CUDAEMU_SITE) {                                   \
        return ::cudaemu::reduce<type>(mask, value, CUDAEMU_HERE, [](type a, type b) { return type(expression); }); \
    }
CUDAEMU_REDUCE(add, unsigned, a + b)
CUDAEMU_REDUCE(add, int, unsigned(a) + unsigned(b))
CUDAEMU_REDUCE(min, unsigned, std::min(a, b))
CUDAEMU_REDUCE(min, int, std::min(a, b))
CUDAEMU_REDUCE(max, unsigned, std::max(a, b))
CUDAEMU_REDUCE(max, int, std::max(a, b))
CUDAEMU_REDUCE(and, unsigned, a& b)
CUDAEMU_REDUCE(or, unsigned, a | b)
CUDAEMU_REDUCE(xor, unsigned, a ^ b)
#undef CUDAEMU_REDUCE

// ---------------------------------------------------------------------------------------- atomics

// Threads are fibers of one OS thread, so a plain read-modify-write is atomic.
template <class T, class Change>
CUDAEMU_UNSEEN T cudaemu_atomic(T* address, Change change, ::cudaemu::Site site) {
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) ::cudaemu::fault("atomic is misaligned", site);
    ::cudaemu::note_access(address, sizeof(T), true, true, site);
    ::cudaemu::count_access(address, sizeof(T), true, site);
    ::cudaemu::note_atomic(address);
    T old;
    std::memcpy(static_cast<void*>(&old), address, sizeof(T));
    const T changed = change(old);
    std::memcpy(static_cast<void*>(address), &changed, sizeof(T));
    return old;
}
template <class T, class... Choices>
concept CudaemuOneOf = (std::is_same_v<T, Choices> || ...);
// Each for the types that CUDA has it for. (A float has no atomicMax: it would be one of its bits.)
#define CUDAEMU_ATOMIC(name, expression, ...)                                               \
    template <CudaemuOneOf<__VA_ARGS__> T>                                                  \
    T name(T* address, std::type_identity_t<T> v, CUDAEMU_SITE) {                           \
        return cudaemu_atomic(address, [=](T old) { return T(expression); }, CUDAEMU_HERE); \
    }
CUDAEMU_ATOMIC(atomicAdd, old + v, unsigned, unsigned long long, float, double)
CUDAEMU_ATOMIC(atomicAdd, unsigned(old) + unsigned(v), int)
CUDAEMU_ATOMIC(atomicAdd, __hadd2(old, v), __half2, __nv_bfloat162)
CUDAEMU_ATOMIC(atomicAdd, __hadd(old, v), __half, __nv_bfloat16)
CUDAEMU_ATOMIC(atomicSub, unsigned(old) - unsigned(v), int, unsigned)
CUDAEMU_ATOMIC(atomicMax, std::max(old, v), int, unsigned, long long, unsigned long long)
CUDAEMU_ATOMIC(atomicMin, std::min(old, v), int, unsigned, long long, unsigned long long)
CUDAEMU_ATOMIC(atomicAnd, old& v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicOr, old | v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicXor, old ^ v, int, unsigned, unsigned long long)
CUDAEMU_ATOMIC(atomicExch, ((void)old, v), int, unsigned, unsigned long long, float)
CUDAEMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1, unsigned)
CUDAEMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1, unsigned)
#undef CUDAEMU_ATOMIC
template <CudaemuOneOf<int, unsigned, unsigned long long, unsigned short> T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> v, CUDAEMU_SITE) {
    return cudaemu_atomic(address, [=](T old) { return old == expected ? v : old; }, CUDAEMU_HERE);
}

// --------------------------------------------------------------------------- loads and stores

#define CUDAEMU_LOAD(name)                                                      \
    template <class T>                                                          \
    CUDAEMU_UNSEEN T name(const T* address, CUDAEMU_SITE) {                     \
        ::cudaemu::check_global(address, sizeof(T), #name, CUDAEMU_HERE);       \
        ::cudaemu::note_access(address, sizeof(T), false, false, CUDAEMU_HERE); \
        ::cudaemu::count_access(address, sizeof(T), false, CUDAEMU_HERE);       \
        return *address;                                                        \
    }
CUDAEMU_LOAD(__ldg)
CUDAEMU_LOAD(__ldcg)
CUDAEMU_LOAD(__ldca)
CUDAEMU_LOAD(__ldcs)
CUDAEMU_LOAD(__ldlu)
CUDAEMU_LOAD(__ldcv)
#undef CUDAEMU_LOAD
#define CUDAEMU_STORE(name)                                                             \
    template <class T>                                                                  \
    CUDAEMU_UNSEEN void name(T* address, std::type_identity_t<T> value, CUDAEMU_SITE) { \
        ::cudaemu::check_global(address, sizeof(T), #name, CUDAEMU_HERE);               \
        ::cudaemu::note_access(address, sizeof(T), true, false, CUDAEMU_HERE);          \
        ::cudaemu::count_access(address, sizeof(T), true, CUDAEMU_HERE);                \
        *address = value;                                                               \
    }
CUDAEMU_STORE(__stwb)
CUDAEMU_STORE(__stcg)
CUDAEMU_STORE(__stcs)
CUDAEMU_STORE(__stwt)
#undef CUDAEMU_STORE
