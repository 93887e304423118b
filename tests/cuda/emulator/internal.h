// What the emulator's own files share. Not for tests or kernels.
#pragma once

#include <mutex>

#include "cudaemu.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace cudaemu {

// One reserved range: shared memory of the running block first, then what cudaMalloc gave out.
constexpr size_t kHeapBytes = size_t(4) << 30, kSharedBytes = size_t(1) << 20, kRedZone = 256;
constexpr size_t kSharedLimit = 48 << 10, kSharedOptInLimit = 99 << 10;  // sm_86/89/120: the smallest
extern char* const heap;

// Device memory is closed (PROT_NONE) to host code except while one of these lives (Options::host_may_touch_device: never).
struct DeviceMemoryOpen {
    DeviceMemoryOpen();
    ~DeviceMemoryOpen();
};

// The memory of a thousand fibers' stacks and of everything else is touched under this lock alone.
extern std::recursive_mutex machine;

// memory.cpp: null where there is no room. bytes > 0.
void* allocate_device(size_t bytes);
bool free_device(void* pointer);
void free_all_device();
size_t device_bytes_used();
bool inside_allocation(const void* pointer, size_t bytes);

// cudaemu.cpp
constexpr size_t kStackBytes = 256 << 10;  // of a thread
bool host_may_lend(const void* pointer);

// accesses.cpp
void count_access_of_code(const void* address, size_t bytes, bool write, const void* code);

}  // namespace cudaemu
