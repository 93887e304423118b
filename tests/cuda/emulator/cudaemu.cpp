// Fibers and their scheduler: what runs a grid.
#include <link.h>
#include <sys/mman.h>

#include <memory>
#include <numeric>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "accesses.h"
#include "internal.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define START_SWITCH(save, stack, size) __sanitizer_start_switch_fiber(save, stack, size)
#define FINISH_SWITCH(save, stack, size) __sanitizer_finish_switch_fiber(save, stack, size)
#else
#define START_SWITCH(save, stack, size) ((void)(save), (void)(stack), (void)(size))
#define FINISH_SWITCH(save, stack, size) ((void)(save), (void)(stack), (void)(size))
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cudaemu {

Options options;
Statistics statistics;
Thread* self = nullptr;
Block* block = nullptr;

__attribute__((weak)) void note_access(const void*, size_t, bool, bool, Site) {}
__attribute__((weak)) void note_atomic(const void*) {}
__attribute__((weak)) void note_fence() {}
__attribute__((weak)) void count_access(const void*, size_t, bool, Site) {}

namespace accesses {  // accesses.cpp has them in a race build
__attribute__((weak)) bool available() { return false; }
__attribute__((weak)) void start() {}
__attribute__((weak)) void stop() {}
__attribute__((weak)) std::vector<Row> table() { return {}; }
__attribute__((weak)) Row total(const std::string&, const std::string&, Space) { return {}; }
__attribute__((weak)) std::string format(const std::vector<Row>&) { return ""; }
}  // namespace accesses

std::string describe(Site site) {
    const char* name = std::strrchr(site.file, '/');
    return "at " + std::string(name ? name + 1 : site.file) + ":" + std::to_string(site.line);
}

namespace {

// ----------------------------------------------------------------------------- shared memory

struct SharedZone {
    const void* key;
    void* memory;
};
std::vector<SharedZone> shared_zones;
size_t shared_used, shared_billed, dynamic_bytes;
std::unordered_map<const void*, size_t> dynamic_opt_in;  // by kernel: cudaFuncSetAttribute

void* allocate_shared(size_t bytes, size_t align) {
    shared_used = (shared_used + align - 1) / align * align;
    char* memory = heap + shared_used;
    shared_used += bytes;
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    std::memset(memory, 0xff, bytes);  // NaN as float, half or bfloat16
    shared_used += kRedZone;
    return memory;
}

// ------------------------------------------------------------------------------------ fibers

struct AsyncCopy {
    void* target;
    const void* source;
    unsigned bytes, valid, group;
    Site site;
};

struct Fiber : Thread {
    char* stack_memory = nullptr;
    void* context = nullptr;  // saved stack pointer
#if !defined(__x86_64__)
    ucontext_t ucontext;
#endif
    void* asan_stack = nullptr;
    bool done = false;
    const char* waits_for = nullptr;
    Site waits_at{};
    std::vector<AsyncCopy> copies;
    unsigned copy_group = 0;
};

struct Collective {
    uint32_t mask = 0, arrived = 0;
    Site site{};
    void* requests[32] = {};
};

std::vector<std::unique_ptr<Fiber>> fibers;
Fiber host;  // the context that called launch()
Fiber* current = &host;
std::vector<Fiber*> ready;
std::vector<std::vector<Collective>> warps;  // open meetings, by warp
unsigned live, at_barrier, votes, vote_result;
Site barrier_site;
std::string fault_text;
std::thread::id running_thread;
const std::function<void()>* kernel_body;
uint64_t random_state, block_serial;

uint64_t next_random() {  // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

[[noreturn]] void fiber_main();

#if defined(__x86_64__)
extern "C" void cudaemu_switch(void** save, void* load);
asm(R"(
    .text
    .type cudaemu_switch, @function
cudaemu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cudaemu_switch, .-cudaemu_switch
)");
void prepare(Fiber& f) {
    void** top = reinterpret_cast<void**>(f.stack_memory + kStackBytes) - 1;  // as if called: 8 past a multiple of 16
    *--top = reinterpret_cast<void*>(&fiber_main);                            // where the first switch returns to
    f.context = top - 6;
}
void swap_context(Fiber& from, Fiber& to) { cudaemu_switch(&from.context, to.context); }
#else
void prepare(Fiber& f) {
    getcontext(&f.ucontext);
    f.ucontext.uc_stack.ss_sp = f.stack_memory;
    f.ucontext.uc_stack.ss_size = kStackBytes;
    makecontext(&f.ucontext, reinterpret_cast<void (*)()>(&fiber_main), 0);
}
void swap_context(Fiber& from, Fiber& to) { swapcontext(&from.ucontext, &to.ucontext); }
#endif

const void* host_stack = nullptr;
size_t host_stack_bytes = 0;

void switch_to(Fiber* next) {
    Fiber* previous = current;
    if (next == previous) return;
    ++statistics.switches;
    current = next;
    self = next == &host ? nullptr : next;
    START_SWITCH(previous->done ? nullptr : &previous->asan_stack, next == &host ? host_stack : next->stack,
                 next == &host ? host_stack_bytes : kStackBytes);
    swap_context(*previous, *next);
    FINISH_SWITCH(current->asan_stack, nullptr, nullptr);
}

Fiber* take_ready() {
    if (ready.empty()) return nullptr;
    if (options.order == Order::random) std::swap(ready.back(), ready[next_random() % ready.size()]);
    Fiber* f = ready.back();
    ready.pop_back();
    return f;
}

template <class Get>
void make_ready(unsigned count, Get get) {  // ready is a stack: its last element runs first
    for (unsigned i = 0; i < count; ++i)
        if (Fiber* f = get(options.order == Order::reverse ? i : count - 1 - i)) ready.push_back(f);
}

std::string name(const Thread& t) {
    return "thread (" + std::to_string(t.thread_idx.x) + "," + std::to_string(t.thread_idx.y) + "," +
           std::to_string(t.thread_idx.z) + ")";
}

[[noreturn]] void fault_stuck() {
    std::string text = "deadlock:";
    for (unsigned i = 0, shown = 0; i < block->threads && shown < 4; ++i)
        if (!fibers[i]->done && fibers[i]->waits_for) {
            text +=
                " " + name(*fibers[i]) + " waits for " + fibers[i]->waits_for + " " + describe(fibers[i]->waits_at) + ";";
            ++shown;
        }
    fault(text);
}

void wait(const char* what, Site site) {
    current->waits_for = what;
    current->waits_at = site;
    Fiber* next = take_ready();
    if (!next) fault_stuck();
    Fiber* me = current;
    switch_to(next);
    me->waits_for = nullptr;
}

void release_barrier() {
    at_barrier = 0;
    vote_result = std::exchange(votes, 0);
    ++statistics.barriers;
    make_ready(block->threads, [](unsigned i) { return fibers[i]->done ? nullptr : fibers[i].get(); });
}

void finish_thread() {
    Fiber* f = current;
    for (Collective& c : warps[f->linear / 32])
        if (c.arrived && (c.mask >> lane() & 1)) fault(name(*f) + " exits while its warp waits for it " + describe(c.site));
    f->done = true;
    --live;
    if (live && at_barrier == live) {
        if (!options.allow_exited_at_barrier) {
            f->done = false;
            fault(name(*f) + " exits and misses the barrier " + describe(barrier_site));
        }
        release_barrier();
    }
    Fiber* next = live ? take_ready() : &host;
    if (!next) {
        f->done = false;
        fault_stuck();
    }
    switch_to(next);
}

[[noreturn]] void fiber_main() {
    const bool from_host = !host_stack;
    FINISH_SWITCH(nullptr, from_host ? &host_stack : nullptr, from_host ? &host_stack_bytes : nullptr);
    (*kernel_body)();
    finish_thread();
    std::abort();
}

void run_block(uint3 index) {
    block->index = index;
    block->serial = ++block_serial;
    ASAN_UNPOISON_MEMORY_REGION(heap, kSharedBytes);
    ASAN_POISON_MEMORY_REGION(heap, kSharedBytes);
    shared_zones.clear();
    shared_used = kRedZone;
    shared_billed = dynamic_bytes;
    shared_zones.push_back({nullptr, allocate_shared(dynamic_bytes, 128)});
    while (fibers.size() < block->threads) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers.back()->stack_memory = static_cast<char*>(
            mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    warps.assign((block->threads + 31) / 32, {});
    for (unsigned i = 0; i < block->threads; ++i) {
        Fiber& f = *fibers[i];
        char* stack = f.stack_memory;
        f = Fiber{};
        f.stack = f.stack_memory = stack;
        f.linear = i;
        f.thread_idx = {i % block->size.x, i / block->size.x % block->size.y, i / (block->size.x * block->size.y)};
        ASAN_UNPOISON_MEMORY_REGION(stack + kStackBytes - 4096, 4096);  // frames that never returned
        prepare(f);
    }
    live = block->threads;
    at_barrier = votes = 0;
    ready.clear();
    make_ready(block->threads, [](unsigned i) { return fibers[i].get(); });
    host_stack = nullptr;
    switch_to(take_ready());
    if (!fault_text.empty()) {
        block = nullptr;
        for (auto& f : fibers) ASAN_UNPOISON_MEMORY_REGION(f->stack, kStackBytes);
        throw Fault(fault_text + " in block (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
                    std::to_string(index.z) + ")");
    }
    ++statistics.blocks;
    statistics.threads += block->threads;
}

}  // namespace

// -------------------------------------------------------------------------- what kernels call

void fault(const std::string& what) {
    if (!self) throw Fault(what);
    fault_text = name(*self) + ": " + what;
    switch_to(&host);
    std::abort();  // never resumed
}

unsigned block_barrier(Site site, bool vote) {
    if (at_barrier == 0)
        barrier_site = site;
    else if (site.line != barrier_site.line || std::strcmp(site.file, barrier_site.file))
        fault("divergent barriers: __syncthreads() " + describe(site) + " while others wait " + describe(barrier_site));
    ++self->barrier_epoch;
    ++self->full_syncs;
    self->partial_syncs = 0;
    votes += vote;
    if (++at_barrier == live) {
        if (live < block->threads && !options.allow_exited_at_barrier)
            fault("some threads exited before the barrier " + describe(site));
        release_barrier();
    }
    wait("__syncthreads()", site);
    return vote_result;
}

bool arrive_at_collective(uint32_t mask, Site site, void* request, void*** requests) {
    const unsigned warp = self->linear / 32, first = warp * 32;
    if (!(mask >> lane() & 1)) fault("calls with a mask that leaves it out " + describe(site));
    Collective* meeting = nullptr;
    for (Collective& c : warps[warp])
        if (c.mask == mask) meeting = &c;
    if (!meeting) {
        for (unsigned i = 0; i < 32; ++i)
            if ((mask >> i & 1) && (first + i >= block->threads)) fault("names lanes that do not exist " + describe(site));
        meeting = &warps[warp].emplace_back();
        meeting->mask = mask;
    }
    if (!meeting->arrived) {
        meeting->site = site;
        std::fill(std::begin(meeting->requests), std::end(meeting->requests), nullptr);
        for (unsigned i = 0; i < 32; ++i)
            if ((mask >> i & 1) && fibers[first + i]->done) fault("waits for a lane that has exited " + describe(site));
    } else if (site.line != meeting->site.line || std::strcmp(site.file, meeting->site.file)) {
        fault("divergent warp: " + describe(site) + " while other lanes wait " + describe(meeting->site));
    }
    if (mask == ~0u) {
        ++self->full_syncs;
        self->partial_syncs = 0;
    } else {
        ++self->partial_syncs;
    }
    meeting->arrived |= 1u << lane();
    meeting->requests[lane()] = request;
    if (meeting->arrived == mask) {
        *requests = meeting->requests;
        return true;
    }
    wait("its warp", site);
    return false;
}

void leave_collective(uint32_t mask) {
    const unsigned warp = self->linear / 32;
    for (Collective& c : warps[warp])
        if (c.mask == mask) c.arrived = 0;
    ++statistics.warp_collectives;
    make_ready(32,
               [=](unsigned i) -> Fiber* { return (mask >> i & 1) && i != lane() ? fibers[warp * 32 + i].get() : nullptr; });
}

void* shared_memory(const void* key, size_t bytes, size_t align) {
    for (SharedZone& z : shared_zones)
        if (z.key == key) return z.memory;
    shared_billed += bytes;
    if (shared_billed - dynamic_bytes > kSharedLimit || shared_billed > kSharedOptInLimit)
        fault("uses " + std::to_string(shared_billed) + " bytes of shared memory");
    return shared_zones.emplace_back(SharedZone{key, allocate_shared(bytes, align)}).memory;
}

void* dynamic_shared_memory() { return shared_zones.front().memory; }

// The copy happens as late as the rules allow, and its target is spoilt as early as they allow.
void async_copy(void* target, const void* source, unsigned bytes, unsigned valid, Site site) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fault("cp.async of a size that does not exist " + describe(site));
    if (reinterpret_cast<uintptr_t>(target) % bytes || reinterpret_cast<uintptr_t>(source) % bytes)
        fault("cp.async is misaligned " + describe(site));
    if (valid && !is_device_pointer(source)) fault("cp.async source is not global memory " + describe(site));
    note_access(target, bytes, true, false, site);
    count_access(target, bytes, true, site);
    if (valid) count_access(source, valid, false, site);
    std::memset(target, 0xff, bytes);
    current->copies.push_back({target, source, bytes, valid, current->copy_group, site});
}

void async_commit() { ++current->copy_group; }

void async_wait(unsigned left) {
    auto& copies = current->copies;
    auto late = copies.begin();
    for (; late != copies.end() && late->group + left < current->copy_group; ++late) {
        note_access(late->target, late->bytes, true, false, late->site);
        if (late->valid) note_access(late->source, late->valid, false, false, late->site);
        std::memset(late->target, 0, late->bytes);
        std::memcpy(late->target, late->source, late->valid);
    }
    copies.erase(copies.begin(), late);
    for (const AsyncCopy& c : copies) std::memset(c.target, 0xff, c.bytes);  // still in flight: may hold anything
}

void check_launch(const Launch& launch) {
    const dim3 grid = launch.grid, size = launch.block;
    const uint64_t threads = uint64_t(size.x) * size.y * size.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
    if (!threads || threads > 1024 || size.z > 64) throw Fault("invalid block size");
    if (!blocks || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) throw Fault("invalid grid size");
    const auto opt_in = dynamic_opt_in.find(launch.kernel);
    if (launch.dynamic_shared_bytes > (opt_in == dynamic_opt_in.end() ? kSharedLimit : opt_in->second))
        throw Fault("too much dynamic shared memory (no cudaFuncSetAttribute?)");
}

bool allow_dynamic_shared(const void* kernel, size_t bytes) {
    if (bytes > kSharedOptInLimit) return false;
    dynamic_opt_in[kernel] = std::max(bytes, kSharedLimit);
    return true;
}

void fault(const char* what, Site site) { fault(what + (" " + describe(site))); }

void check_global(const void* address, size_t bytes, const char* what, Site site) {
    if (!is_device_pointer(address)) fault((std::string(what) + " of what is not global memory").c_str(), site);
    if (reinterpret_cast<uintptr_t>(address) % std::min(bytes, size_t(16)))
        fault((std::string(what) + " is misaligned").c_str(), site);
}

// Static data, the stacks of the block's threads, the parameters, threadIdx and the like: what a kernel may touch besides
// device memory.
bool host_may_lend(const void* pointer) {
    static const auto objects = [] {
        std::vector<std::pair<uintptr_t, uintptr_t>> out;
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* all) {
                for (int i = 0; i < info->dlpi_phnum; ++i)
                    if (info->dlpi_phdr[i].p_type == PT_LOAD) {
                        const uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                        static_cast<decltype(out)*>(all)->emplace_back(start, start + info->dlpi_phdr[i].p_memsz);
                    }
                return 0;
            },
            &out);
        return out;
    }();
    const auto inside = [pointer](const void* start, size_t bytes) {
        return reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(start) < bytes;
    };
    if (running_thread != std::this_thread::get_id()) return true;  // another thread's host code
    if (inside(self->stack, kStackBytes) || inside(block->launch->parameters, block->launch->parameter_bytes) ||
        inside(block->launch, sizeof(Launch)) || inside(block, sizeof(Block)))
        return true;
    for (const auto& f : fibers)
        if (inside(f.get(), sizeof(Fiber)) || inside(f->stack_memory, kStackBytes)) return true;
    for (const auto& [start, end] : objects)
        if (inside(reinterpret_cast<const void*>(start), end - start)) return true;
    return false;
}

std::function<void(const Launch&)> on_launch;

void run_grid(const Launch& launch) {
    DeviceMemoryOpen open;
    if (on_launch) on_launch(launch);
    running_thread = std::this_thread::get_id();
    const dim3 grid = launch.grid;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    Block running{grid, launch.block, {}, launch.block.x * launch.block.y * launch.block.z, 0, block_serial + 1, &launch};
    block = &running;
    kernel_body = &launch.body;
    dynamic_bytes = launch.dynamic_shared_bytes;
    fault_text.clear();
    random_state = options.seed;
    std::vector<uint32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    if (options.order == Order::reverse) std::reverse(order.begin(), order.end());
    if (options.order == Order::random)
        for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[next_random() % i]);
    for (uint32_t b : order) run_block({b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y});
    block = nullptr;
}

}  // namespace cudaemu
