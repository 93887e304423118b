// Adapters by name: on disk until somebody asks, in memory within a budget.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "nn/adapter.h"

namespace halfbyte {

/// Safe from many threads. Nobody waits for another adapter to be read; whoever uses one keeps it until done, also after it was
/// replaced, removed or put away: a swap is a pointer.
class AdapterRegistry {
public:
    using Read = std::function<std::shared_ptr<const Adapter>(const std::filesystem::path& path, const std::string& name)>;

    struct Stats {
        uint64_t hits = 0;      ///< asked for and in memory
        uint64_t misses = 0;    ///< asked for and read from the disk
        uint64_t put_away = 0;  ///< dropped from memory for the budget
        int64_t resident = 0;   ///< adapters in memory
        uint64_t bytes = 0;     ///< of those, on the device
        uint64_t budget = 0;    ///< 0: none
    };

    explicit AdapterRegistry(Read read) : read_(std::move(read)) {}

    /// Keeps `path` under `name`, replacing one of that name; `lazily`: it is read when it is first asked for. `pinned`: it is
    /// never put away. Errors: invalid_argument for an empty name; those of reading it.
    void add(const std::filesystem::path& path, const std::string& name, bool pinned, bool lazily);
    /// Error not_found, naming those there are.
    void remove(const std::string& name);
    /// Read from its path if need be. Errors: not_found; those of reading it.
    std::shared_ptr<const Adapter> get(const std::string& name);
    std::vector<std::string> names() const;
    Stats stats() const;
    /// Bytes of adapters to keep in memory at most, pinned ones and those in use apart; 0: no limit. What was used least
    /// recently is put away, and read again when it is asked for.
    void set_budget(uint64_t bytes);

private:
    struct Entry {
        std::filesystem::path path;
        bool pinned = false;
        std::mutex reading;  // held while the adapter is read
        // Guarded by the registry's mutex:
        std::shared_ptr<const Adapter> adapter;  // null: on disk
        uint64_t bytes = 0;                      // of `adapter`
        uint64_t last_used = 0;
    };
    [[noreturn]] void fail_absent(const std::string& name) const;
    static void hold(Entry& entry, std::shared_ptr<const Adapter> adapter);
    std::vector<std::shared_ptr<const Adapter>> put_away();  // mutex held; freed by the caller, after the lock

    Read read_;
    mutable std::mutex mutex_;
    std::map<std::string, std::shared_ptr<Entry>> entries_;
    uint64_t clock_ = 0, budget_ = 0;
    Stats stats_;
};

}  // namespace halfbyte
