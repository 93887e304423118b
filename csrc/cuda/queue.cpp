#include "cuda/queue.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/plugin_loader.h"

namespace halfbyte::cuda {

namespace {

constexpr size_t kFirstStaging = size_t(256) << 10;

size_t rounded_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

void append_command(std::vector<std::byte>& list, Op op, const void* command, size_t bytes) {
    const CommandHeader header{op, uint32_t(rounded_up(bytes, 8))};
    const size_t at = list.size();
    list.resize(at + sizeof header + header.bytes);
    std::memcpy(list.data() + at, &header, sizeof header);
    std::memcpy(list.data() + at + sizeof header, command, bytes);
}

}  // namespace

void Queue::checked(Status status, const char* what) {
    if (status != 0 && status != kOutOfMemory && failure_.empty()) failure_ = concat(what, ": ", plugin_.last_error());
    check(plugin_, status, what);
}

Queue::Queue(const Plugin& plugin, Context* context) : plugin_(plugin), context_(context) {}

Queue::~Queue() {
    plugin_.synchronize(context_);
    for (Known& known : known_)
        if (known.graph != nullptr) plugin_.destroy_graph(context_, known.graph);
    for (Staging& staging : staging_) {
        if (staging.pinned != nullptr) plugin_.release_pinned(context_, staging.pinned);
        if (staging.device != nullptr) plugin_.release(context_, staging.device);
    }
}

void Queue::wait_for_slot() {
    if (slot_ready_) return;
    if (slot().in_flight) checked(plugin_.wait(context_, current_), "waiting for a step");
    slot().in_flight = false;
    slot_ready_ = true;
}

void Queue::reserve_staging(size_t bytes) {
    if (staged_bytes_ + bytes <= slot().capacity) return;
    flush();  // what was staged so far goes with its own list
    wait_for_slot();
    if (bytes <= slot().capacity) return;
    Staging& staging = slot();
    const size_t capacity = std::max(kFirstStaging, rounded_up(bytes, kFirstStaging));
    if (staging.pinned != nullptr) checked(plugin_.release_pinned(context_, staging.pinned), "staging");
    staging.pinned = nullptr;
    if (staging.device != nullptr) checked(plugin_.release(context_, staging.device), "staging");
    staging.device = nullptr, staging.capacity = 0;
    void* memory = nullptr;
    checked(plugin_.allocate_pinned(context_, capacity, &memory), "pinned memory for staging");
    staging.pinned = static_cast<char*>(memory);
    checked(plugin_.allocate(context_, capacity, &memory), "memory for staging");
    staging.device = static_cast<char*>(memory);
    staging.capacity = capacity;
}

const void* Queue::stage(const void* values, size_t bytes) {
    if (bytes == 0) return nullptr;
    for (const Staged& staged : staged_)
        if (staged.host == values && staged.bytes == bytes && std::memcmp(slot().pinned + staged.at, values, bytes) == 0)
            return slot().device + staged.at;
    wait_for_slot();
    reserve_staging(rounded_up(bytes, kAlignment));
    const size_t at = staged_bytes_;
    std::memcpy(slot().pinned + at, values, bytes);
    staged_.push_back({values, at, bytes});
    staged_bytes_ += rounded_up(bytes, kAlignment);
    return slot().device + at;
}

void Queue::append(Op op, const void* command, size_t bytes) {
    append_command(list_, op, command, bytes);
    commands_++;
    gemms_ += op == Op::gemm;
    if (list_.size() > kMostBytes || gemms_ >= kGemmsPerList) flush();
}

void Queue::flush() {
    if (commands_ == 0 && staged_bytes_ == 0) return;
    std::vector<std::byte> list;
    const bool staged = staged_bytes_ > 0;
    if (staged) {
        const Copy copy{slot().device, slot().pinned, staged_bytes_, 1};
        append_command(list, Op::copy, &copy, sizeof copy);
    }
    list.insert(list.end(), list_.begin(), list_.end());
    const size_t commands = commands_;
    list_.clear();
    staged_.clear();
    commands_ = gemms_ = staged_bytes_ = 0;
    send(list, commands);
    if (!staged) return;
    checked(plugin_.mark(context_, current_), "marking the end of a step");
    slot().in_flight = true;
    current_ = (current_ + 1) % kStagingSlots;
    slot_ready_ = false;
}

bool Queue::same(const Known& known, const std::vector<std::byte>& list) {
    return known.list.size() == list.size() && std::memcmp(known.list.data(), list.data(), list.size()) == 0;
}

void Queue::send(const std::vector<std::byte>& list, size_t commands) {
    lists_sent_++;
    if (commands < kGraphCommands) return checked(plugin_.run(context_, list.data(), list.size()), "a step");
    const auto known = std::ranges::find_if(known_, [&](const Known& k) { return same(k, list); });
    if (known == known_.end()) {
        // New: it may never come again, and a graph costs more than the launches.
        checked(plugin_.run(context_, list.data(), list.size()), "a step");
        known_.push_front({list, nullptr});
        if (known_.size() > kMostGraphs) {
            if (known_.back().graph != nullptr) {
                checked(plugin_.synchronize(context_), "a step");
                plugin_.destroy_graph(context_, known_.back().graph);
            }
            known_.pop_back();
        }
        return;
    }
    known_.splice(known_.begin(), known_, known);
    if (known->graph == nullptr)
        checked(plugin_.capture(context_, list.data(), list.size(), &known->graph), "capturing a step");
    checked(plugin_.run_graph(context_, known->graph), "a step");
    graphs_launched_++;
}

void Queue::synchronize() {
    flush();
    checked(plugin_.synchronize(context_), "waiting for the device");
}

}  // namespace halfbyte::cuda
