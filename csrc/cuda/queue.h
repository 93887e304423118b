// Commands on their way to the GPU: collected in a list, sent in one go, and as a graph when the same list comes again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "cuda/plugin.h"

namespace halfbyte::cuda {

/// A forward pass is a list of commands. Arrays of the host that it needs (ids, positions, lengths) are staged: they lie behind
/// one another in pinned memory and go to the device in one copy at the head of the list. A list that is the same as one before
/// it, byte for byte, but for what was staged (the next token of the same sequences) is launched as one CUDA graph.
/// Not safe for many threads: the device locks.
class Queue {
public:
    Queue(const Plugin& plugin, Context* context);
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    ~Queue();

    template <class Command>
    void push(Op op, const Command& command) {
        append(op, &command, sizeof command);
    }
    /// The first `bytes` of a command whose end is not used.
    void append(Op op, const void* command, size_t bytes);
    /// Where on the device these values will be when the list runs. The same array staged twice is staged once.
    template <class T>
    const T* stage(std::span<const T> values) {
        return static_cast<const T*>(stage(values.data(), values.size_bytes()));
    }
    const void* stage(const void* values, size_t bytes);

    /// Sends what was collected. Errors: internal, out_of_memory.
    void flush();
    /// Ends sent and unsent work: everything is done when it comes back.
    void synchronize();

    /// Throws where status is not 0. What CUDA calls sticky (all but a lack of memory) is kept: see failure().
    void checked(Status status, const char* what);
    const std::string& failure() const { return failure_; }

    uint64_t graphs_launched() const { return graphs_launched_; }
    uint64_t lists_sent() const { return lists_sent_; }

private:
    static constexpr int kStagingSlots = 2;
    static constexpr size_t kAlignment = 16;
    static constexpr size_t kGraphCommands = 16;  ///< shorter lists are not worth a graph
    static constexpr size_t kMostGraphs = 8;
    static constexpr size_t kMostBytes = size_t(1) << 20;  ///< of a list
    static constexpr size_t kGemmsPerList = 8;             ///< large products: the GPU should begin before the list is whole

    struct Staging {
        char* pinned = nullptr;
        char* device = nullptr;
        size_t capacity = 0;
        bool in_flight = false;
    };
    struct Staged {
        const void* host;
        size_t at, bytes;
    };
    struct Known {
        std::vector<std::byte> list;
        Graph* graph = nullptr;
    };

    Staging& slot() { return staging_[current_]; }
    void wait_for_slot();
    void reserve_staging(size_t bytes);
    void send(const std::vector<std::byte>& list, size_t commands);
    static bool same(const Known& known, const std::vector<std::byte>& list);

    const Plugin& plugin_;
    Context* context_;
    std::vector<std::byte> list_;
    size_t commands_ = 0, gemms_ = 0;
    Staging staging_[kStagingSlots];
    int current_ = 0;
    bool slot_ready_ = false;  ///< the current slot may be written to
    size_t staged_bytes_ = 0;
    std::vector<Staged> staged_;
    std::list<Known> known_;  ///< the latest first
    std::string failure_;
    uint64_t graphs_launched_ = 0, lists_sent_ = 0;
};

}  // namespace halfbyte::cuda
