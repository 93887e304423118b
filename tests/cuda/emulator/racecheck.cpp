// Finds races and reads of unwritten shared memory, whatever order the threads happened to run in.
//
// The kernels' file is compiled with -fsanitize=thread but linked with this file instead of libtsan:
// the compiler then calls the functions below on every load and store. Two accesses to a byte by
// different threads, one of them a write, must have a __syncthreads() between them (or, in one warp,
// a full __syncwarp()); blocks of one launch must not touch each other's bytes but by atomics.
#include "cudaemu.h"

#include <sys/mman.h>
#include <cstdio>
#include <memory>

namespace cudaemu {

extern const char* const heap_begin;
extern const size_t heap_bytes, shared_bytes;

namespace {

struct Access {
    uint64_t block = 0;
    const void* code = nullptr;  // where, unless site says
    Site site{nullptr, 0};
    uint32_t barrier_epoch = 0;
    uint16_t thread = 0, warp_epoch = 0;
    bool atomic = false, many = false;  // many: threads of more than one warp read it
};
struct Shadow {
    Access write, read;
};

Shadow* shadow() {
    static Shadow* const memory = static_cast<Shadow*>(mmap(nullptr, heap_bytes * sizeof(Shadow), PROT_READ | PROT_WRITE,
                                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

std::string where(const void* code, Site site) {
    if (site.file) return describe(site).substr(3);
    char path[512] = {}, command[640], line[512] = {};
    std::FILE* maps = std::fopen("/proc/self/maps", "r");
    unsigned long start = 0, end = 0, offset = 0, base = 0;
    while (maps && std::fgets(line, sizeof line, maps)) {
        if (std::sscanf(line, "%lx-%lx %*s %lx %*s %*s %511s", &start, &end, &offset, path) < 3) continue;
        if (uintptr_t(code) >= start && uintptr_t(code) < end) {
            base = start - offset;
            break;
        }
    }
    if (maps) std::fclose(maps);
    std::snprintf(command, sizeof command, "addr2line -s -e %s 0x%lx", path, uintptr_t(code) - 1 - base);
    std::FILE* pipe = popen(command, "r");
    std::string text = pipe && std::fgets(line, sizeof line, pipe) ? line : "?";
    if (pipe) pclose(pipe);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

// May the earlier access and the running thread's meet in either order on a GPU?
bool unordered(const Access& earlier, bool shared) {
    if (earlier.block != block->serial) return !shared && earlier.block >= block->launch_first_serial;
    if (earlier.thread == self->linear && !earlier.many) return false;
    if (earlier.barrier_epoch != self->barrier_epoch) return false;
    return earlier.many || earlier.thread / 32 != self->linear / 32 || earlier.warp_epoch == uint16_t(self->warp_epoch);
}

void note(const void* address, size_t bytes, bool write, bool atomic, const void* code, Site site = {nullptr, 0}) {
    const size_t offset = static_cast<const char*>(address) - heap_begin;
    if (offset >= heap_bytes || !self) return;
    const bool shared = offset < shared_bytes;
    for (size_t i = 0; i < bytes; ++i) {
        Shadow& s = shadow()[offset + i];
        if (unordered(s.write, shared) && !(atomic && s.write.atomic))
            fault("race: " + std::string(write ? "writes" : "reads") + " at " + where(code, site) +
                  " what another thread wrote at " + where(s.write.code, s.write.site));
        if (write && unordered(s.read, shared))
            fault("race: writes at " + where(code, site) + " what another thread read at " +
                  where(s.read.code, s.read.site));
        if (shared && !write && s.write.block != block->serial)
            fault("reads shared memory that no thread of the block wrote, at " + where(code, site));
        Access& slot = write ? s.write : s.read;
        const bool again = !write && slot.block == block->serial && slot.barrier_epoch == self->barrier_epoch;
        const bool many = again && (slot.many || slot.thread / 32 != self->linear / 32);
        slot = {block->serial, code, site, self->barrier_epoch, uint16_t(self->linear), uint16_t(self->warp_epoch),
                atomic,        many};
    }
}

}  // namespace

void note_access(const void* address, size_t bytes, bool write, bool atomic, Site site) {
    note(address, bytes, write, atomic, __builtin_return_address(0), site);
}

}  // namespace cudaemu

#define HOOKS(bytes)                                                                                                   \
    void __tsan_read##bytes(void* p) { cudaemu::note(p, bytes, false, false, __builtin_return_address(0)); }           \
    void __tsan_write##bytes(void* p) { cudaemu::note(p, bytes, true, false, __builtin_return_address(0)); }           \
    void __tsan_unaligned_read##bytes(void* p) { cudaemu::note(p, bytes, false, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##bytes(void* p) { cudaemu::note(p, bytes, true, false, __builtin_return_address(0)); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) void __tsan_read_range(void* p, size_t n) {
    cudaemu::note(p, n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) { cudaemu::note(p, n, true, false, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
