// Finds races and reads of unwritten shared memory, whatever order the threads happened to run in.
//
// The kernels' file is compiled with -fsanitize=thread but linked with this file instead of libtsan:
// the compiler then calls the functions below on every load and store. Two accesses to a byte by
// different threads, one of them a write, must have a __syncthreads() between them (or, in one warp,
// a full __syncwarp()); blocks of one launch must not touch each other's bytes but by atomics, or after an atomic of the one that
// wrote: __threadfence() before its atomic, __threadfence() after the reader's atomic on the same word, each by the thread of the
// atomic or, with a __syncthreads() between, by those that wrote and read. (What the writer itself had learned so from a third
// block is not handed on.)

#include <sys/mman.h>
#include <memory>
#include <unordered_map>
#include <vector>

#include "internal.h"
#include "places.h"

namespace cudaemu {

namespace {

struct Access {
    uint64_t block = 0;
    const void* code = nullptr;  // where, unless site says
    Site site{nullptr, 0};
    uint32_t barrier_epoch = 0;
    uint16_t thread = 0, warp_epoch = 0, fences = 0;  // fences: how many its thread had passed
    bool atomic = false, many = false;                // many: threads of more than one warp read it
};
struct Shadow {
    Access write, read;
};

Shadow* shadow() {
    static Shadow* const memory = static_cast<Shadow*>(mmap(nullptr, kHeapBytes * sizeof(Shadow), PROT_READ | PROT_WRITE,
                                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return memory;
}

std::string where(const void* code, Site site) {
    if (site.file) return describe(site).substr(3);
    const Place place = find_places({static_cast<const char*>(code) - 1})[0];
    return describe({place.file.c_str(), place.line}).substr(3);
}

// ------------------------------------------------------------------------- from block to block

// A moment of a thread: all that happened before it in its block is what other threads did before a barrier that it has passed,
// what its warp did before a __syncwarp(), and what it did itself.
struct Moment {
    uint64_t block = 0;
    uint32_t barrier_epoch = 0;
    uint16_t thread = 0, warp_epoch = 0, fences = 0;
};
Moment now() {
    return {block->serial, self->barrier_epoch, uint16_t(self->linear), uint16_t(self->warp_epoch), uint16_t(self->fences)};
}

// The atomics of this launch on one word, each with the last fence of its thread before it (block 0: none).
struct Release {
    Moment fence;
    uint32_t barrier_epoch;  // of the atomic
};
using Releases = std::vector<Release>;
struct Word {
    std::unordered_map<uint64_t, std::vector<size_t>> of_block;
    Releases releases;
};
// What the running block has seen: the first `count` releases of a word, since the fence `at`.
struct Seen {
    const Word* word;
    size_t count;
    Moment at;
};
std::unordered_map<const void*, Word> words;
std::vector<Seen> pending, seen;  // pending: the block's atomics
std::unordered_map<unsigned, Moment> last_fence;
std::unordered_map<uint64_t, std::vector<uint32_t>> fence_epochs;  // by block and thread: the barrier epochs of its fences
uint64_t words_launch = 0, seen_block = 0;

void enter_block() {
    if (words_launch != block->launch_first_serial) {
        words.clear();
        fence_epochs.clear();
    }
    words_launch = block->launch_first_serial;
    if (seen_block != block->serial) {
        pending.clear();
        seen.clear();
        last_fence.clear();
    }
    seen_block = block->serial;
}

uint64_t thread_key(uint64_t of_block, unsigned thread) { return of_block << 10 | thread; }

bool happened_before(const Access& access, const Release& release) {
    if (!access.many) {  // its own thread's fence, then a barrier
        const auto fences = fence_epochs.find(thread_key(access.block, access.thread));
        if (fences != fence_epochs.end() && access.fences < fences->second.size() &&
            fences->second[access.fences] < release.barrier_epoch)
            return true;
    }
    const Moment& moment = release.fence;
    if (moment.block == 0) return false;
    if (access.barrier_epoch < moment.barrier_epoch) return true;
    if (access.barrier_epoch > moment.barrier_epoch || access.many || access.thread / 32 != moment.thread / 32) return false;
    if (access.warp_epoch < moment.warp_epoch) return true;
    return access.thread == moment.thread && access.fences < moment.fences + access.atomic;  // the atomic itself is seen too
}

bool learned(const Access& earlier) {
    enter_block();
    for (const Seen& s : seen) {
        const bool known = s.at.thread == self->linear || s.at.barrier_epoch < self->barrier_epoch ||
                           (s.at.thread / 32 == self->linear / 32 && s.at.warp_epoch < uint16_t(self->warp_epoch));
        const auto found = known ? s.word->of_block.find(earlier.block) : s.word->of_block.end();
        if (found == s.word->of_block.end()) continue;
        for (size_t i : found->second)
            if (i < s.count && happened_before(earlier, s.word->releases[i])) return true;
    }
    return false;
}

// May the earlier access and the running thread's meet in either order on a GPU?
bool unordered(const Access& earlier, bool shared) {
    if (earlier.block != block->serial) return !shared && earlier.block >= block->launch_first_serial && !learned(earlier);
    if (earlier.thread == self->linear && !earlier.many) return false;
    if (earlier.barrier_epoch != self->barrier_epoch) return false;
    return earlier.many || earlier.thread / 32 != self->linear / 32 || earlier.warp_epoch == uint16_t(self->warp_epoch);
}

void note(const void* address, size_t bytes, bool write, bool atomic, const void* code, Site site = {nullptr, 0}) {
    const size_t offset = static_cast<const char*>(address) - heap;
    if (!self) return;
    if (offset >= kHeapBytes) {
        const size_t in_stack = static_cast<const char*>(address) - self->stack;
        if (in_stack >= kStackBytes && !host_may_lend(address)) fault("touches host memory at " + where(code, site));
        return;
    }
    const bool shared = offset < kSharedBytes;
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
        slot = {
            block->serial,          code,   site, self->barrier_epoch, uint16_t(self->linear), uint16_t(self->warp_epoch),
            uint16_t(self->fences), atomic, many};
    }
}

}  // namespace

void note_access(const void* address, size_t bytes, bool write, bool atomic, Site site) {
    note(address, bytes, write, atomic, __builtin_return_address(0), site);
}

void note_atomic(const void* address) {
    if (!is_device_pointer(address)) return;
    enter_block();
    Word& word = words[address];
    pending.push_back({&word, word.releases.size(), now()});
    const auto fence = last_fence.find(self->linear);
    word.of_block[block->serial].push_back(word.releases.size());
    word.releases.push_back({fence == last_fence.end() ? Moment{} : fence->second, self->barrier_epoch});
}

void note_fence() {
    enter_block();
    ++self->fences;
    last_fence[self->linear] = now();
    fence_epochs[thread_key(block->serial, self->linear)].push_back(self->barrier_epoch);
    for (const Seen& s : pending)
        if (s.at.thread == self->linear || s.at.barrier_epoch < self->barrier_epoch)
            seen.push_back({s.word, s.count, now()});
}

}  // namespace cudaemu

static void seen(void* p, size_t n, bool write, const void* code) {
    cudaemu::note(p, n, write, false, code);
    cudaemu::count_access_of_code(p, n, write, code);
}

#define HOOKS(bytes)                                                                                   \
    void __tsan_read##bytes(void* p) { seen(p, bytes, false, __builtin_return_address(0)); }           \
    void __tsan_write##bytes(void* p) { seen(p, bytes, true, __builtin_return_address(0)); }           \
    void __tsan_unaligned_read##bytes(void* p) { seen(p, bytes, false, __builtin_return_address(0)); } \
    void __tsan_unaligned_write##bytes(void* p) { seen(p, bytes, true, __builtin_return_address(0)); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) void __tsan_read_range(void* p, size_t n) {
    seen(p, n, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) { seen(p, n, true, __builtin_return_address(0)); }
// std::atomic and shared_ptr of the launchers' host code.
#define ATOMIC_HOOKS(bits, type)                                                                                  \
    type __tsan_atomic##bits##_load(const volatile type* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
    void __tsan_atomic##bits##_store(volatile type* p, type v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
    type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) {                                          \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                       \
    }                                                                                                             \
    type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) {                                         \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                        \
    }                                                                                                             \
    type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) {                                         \
        return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                        \
    }                                                                                                             \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* e, type v, int, int) {              \
        return __atomic_compare_exchange_n(p, e, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
    }
ATOMIC_HOOKS(8, uint8_t) ATOMIC_HOOKS(32, uint32_t) ATOMIC_HOOKS(64, uint64_t) void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
