// The queue and the memory of the CUDA device against a plugin that only counts: what is sent, what becomes a graph, what is staged
// where, and what is given back.
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cuda/memory.h"
#include "cuda/queue.h"

using namespace halfbyte;
using namespace halfbyte::cuda;

namespace {

struct Played {
    int runs = 0, captures = 0, graphs = 0, destroyed = 0, waits = 0, marks = 0;
    std::map<void*, size_t> device, pinned;
    std::vector<std::byte> last;
    Status next = 0;  // of run()
    size_t room = size_t(1) << 30;
} played;

size_t held() {
    size_t bytes = 0;
    for (const auto& [memory, size] : played.device) bytes += size;
    return bytes;
}

Status allocate(Context*, size_t bytes, void** memory) {
    if (held() + bytes > played.room) return kOutOfMemory;
    *memory = ::operator new(bytes);
    played.device[*memory] = bytes;
    return 0;
}
Status release(Context*, void* memory) {
    CHECK(played.device.erase(memory) == 1);
    ::operator delete(memory);
    return 0;
}
Status allocate_pinned(Context*, size_t bytes, void** memory) {
    *memory = ::operator new(bytes);
    played.pinned[*memory] = bytes;
    return 0;
}
Status release_pinned(Context*, void* memory) {
    CHECK(played.pinned.erase(memory) == 1);
    ::operator delete(memory);
    return 0;
}
Status run(Context*, const void* commands, size_t bytes) {
    played.runs++;
    const auto* at = static_cast<const std::byte*>(commands);
    played.last.assign(at, at + bytes);
    return std::exchange(played.next, 0);
}
Status capture(Context*, const void*, size_t, Graph** graph) {
    played.captures++;
    *graph = reinterpret_cast<Graph*>(&played);
    return 0;
}
Status run_graph(Context*, Graph*) {
    played.graphs++;
    return 0;
}
void destroy_graph(Context*, Graph*) { played.destroyed++; }
Status mark(Context*, int32_t) {
    played.marks++;
    return 0;
}
Status wait(Context*, int32_t) {
    played.waits++;
    return 0;
}
Status synchronize(Context*) { return 0; }
const char* last_error() { return "a played error"; }

Plugin plugin() {
    Plugin out{};
    out.allocate = allocate, out.release = release;
    out.allocate_pinned = allocate_pinned, out.release_pinned = release_pinned;
    out.run = run, out.capture = capture, out.run_graph = run_graph, out.destroy_graph = destroy_graph;
    out.mark = mark, out.wait = wait, out.synchronize = synchronize, out.last_error = last_error;
    return out;
}

/// A step of `count` commands that read the staged value.
void step(Queue& queue, int32_t value, int count, float* memory) {
    const int32_t* const staged = queue.stage(std::span<const int32_t>(&value, 1));
    for (int i = 0; i < count; i++) queue.push(Op::gather_rows, GatherRows{memory, 8, staged, memory + 8, 8, 1, 8});
    queue.flush();
}

TEST(cuda_graphs) {
    played = {};
    const Plugin table = plugin();
    float memory[64] = {};
    {
        Queue queue(table, nullptr);
        // Two places for staged values take turns: each sees its list twice before it is a graph.
        for (int32_t token = 0; token < 10; token++) step(queue, token, 20, memory);
        CHECK(played.captures == 2 && played.graphs == 8 && played.runs == 2);
        CHECK(played.marks == 10 && played.waits >= 8);
        // Another pointer is another list.
        step(queue, 1, 20, memory + 16);
        CHECK(played.runs == 3 && queue.graphs_launched() == 8);
        // Short lists are never graphs.
        for (int i = 0; i < 6; i++) step(queue, i, 3, memory);
        CHECK(played.runs == 9 && played.captures == 2);
        // Many different lists push the oldest graph out.
        for (int i = 0; i < 12; i++) step(queue, i, 20 + i, memory);
        CHECK(played.destroyed == 2);
    }
    CHECK(played.pinned.empty() && played.device.empty());
}

TEST(cuda_staging) {
    played = {};
    const Plugin table = plugin();
    Queue queue(table, nullptr);
    const std::vector<int32_t> first(100, 7), second(100, 8);
    const int32_t* const a = queue.stage(std::span<const int32_t>(first));
    CHECK(queue.stage(std::span<const int32_t>(first)) == a);  // the same array: once
    CHECK(queue.stage(std::span<const int32_t>(second)) != a);
    CHECK(queue.stage(std::span<const int32_t>()) == nullptr);
    // More than fits goes with its own list; what was staged before is sent, not lost.
    const std::vector<int32_t> large(size_t(1) << 18, 9);
    const int32_t* const c = queue.stage(std::span<const int32_t>(large));
    CHECK(played.runs == 1 && c != nullptr);
    CommandHeader header;
    Copy copy;
    std::memcpy(&header, played.last.data(), sizeof header);
    std::memcpy(&copy, played.last.data() + sizeof header, sizeof copy);
    CHECK(header.op == Op::copy && copy.from_host == 1 && copy.bytes >= 800);
    CHECK(std::memcmp(copy.from, first.data(), 400) == 0);
    queue.flush();
    CHECK(played.runs == 2);
}

TEST(cuda_failure) {
    played = {};
    const Plugin table = plugin();
    Queue queue(table, nullptr);
    float memory[16] = {};
    played.next = 700;
    bool thrown = false;
    try {
        step(queue, 1, 2, memory);
    } catch (const Error& error) {
        thrown = error.code() == ErrorCode::internal && error.message().find("a played error") != std::string::npos;
    }
    CHECK(thrown && !queue.failure().empty());
    // A lack of memory is no such failure.
    Queue other(table, nullptr);
    played.next = kOutOfMemory;
    thrown = false;
    try {
        step(other, 1, 2, memory);
    } catch (const Error& error) {
        thrown = error.code() == ErrorCode::out_of_memory;
    }
    CHECK(thrown && other.failure().empty());
}

TEST(cuda_memory) {
    played = {};
    const Plugin table = plugin();
    {
        MemoryPool pool(table, nullptr);
        void* const large = pool.take(size_t(3) << 20);
        void* const small = pool.take(100);
        CHECK(large != nullptr && small != nullptr && played.device.size() == 2);
        pool.give_back(large);
        CHECK(pool.take(size_t(3) << 20) == large);  // the same block again, nothing asked for
        CHECK(pool.take(size_t(8) << 20) != nullptr && played.device.size() == 3);
        pool.give_back(small);
        CHECK(pool.take(200) == small);
        std::set<void*> places;
        for (int i = 0; i < 100; i++) CHECK(places.insert(pool.take(1000)).second);
        CHECK(played.device.size() == 3);  // they share a slab
        played.room = held();
        CHECK(pool.take(size_t(64) << 20) == nullptr);
        pool.give_back(large);
        const size_t before = held();
        pool.trim();
        CHECK(held() < before);
    }
    CHECK(played.device.empty());
}

}  // namespace
