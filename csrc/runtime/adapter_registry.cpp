#include "runtime/adapter_registry.h"

#include "core/error.h"

namespace halfbyte {

void AdapterRegistry::hold(Entry& entry, std::shared_ptr<const Adapter> adapter) {
    entry.bytes = adapter->bytes();
    entry.adapter = std::move(adapter);
}

void AdapterRegistry::add(const std::filesystem::path& path, const std::string& name, bool pinned, bool lazily) {
    if (name.empty()) fail(ErrorCode::invalid_argument, "load_adapter: the name is empty; give the adapter one");
    auto entry = std::make_shared<Entry>();
    entry->path = path, entry->pinned = pinned;
    if (!lazily) hold(*entry, read_(path, name));
    std::vector<std::shared_ptr<const Adapter>> dropped;
    {
        const std::lock_guard lock(mutex_);
        entry->last_used = ++clock_;
        entries_[name].swap(entry);  // one that is replaced is freed after the lock
        dropped = put_away();
    }
}

void AdapterRegistry::remove(const std::string& name) {
    std::shared_ptr<Entry> last;
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = entries_.find(name); found != entries_.end()) {
            last = std::move(found->second);
            entries_.erase(found);
            return;  // freed after the lock
        }
    }
    fail_absent(name);
}

std::shared_ptr<const Adapter> AdapterRegistry::get(const std::string& name) {
    std::shared_ptr<Entry> entry;
    const auto in_memory = [&]() -> std::shared_ptr<const Adapter> {
        const std::lock_guard lock(mutex_);
        if (!entry) {
            const auto found = entries_.find(name);
            if (found == entries_.end()) return nullptr;
            entry = found->second;
        }
        entry->last_used = ++clock_;
        if (entry->adapter) stats_.hits++;
        return entry->adapter;
    };
    if (std::shared_ptr<const Adapter> adapter = in_memory()) return adapter;
    if (!entry) fail_absent(name);
    const std::lock_guard reading(entry->reading);  // of several that want it, one reads it
    if (std::shared_ptr<const Adapter> adapter = in_memory()) return adapter;
    std::shared_ptr<const Adapter> adapter = read_(entry->path, name);
    std::vector<std::shared_ptr<const Adapter>> dropped;
    {
        const std::lock_guard lock(mutex_);
        stats_.misses++;
        hold(*entry, adapter);
        entry->last_used = ++clock_;
        dropped = put_away();
    }
    return adapter;
}

std::vector<std::shared_ptr<const Adapter>> AdapterRegistry::put_away() {
    std::vector<std::shared_ptr<const Adapter>> dropped;
    if (budget_ == 0) return dropped;
    for (;;) {
        uint64_t bytes = 0;
        Entry* oldest = nullptr;
        for (const auto& [name, entry] : entries_) {
            if (!entry->adapter) continue;
            bytes += entry->bytes;
            // The one that was asked for last is about to be used.
            if (!entry->pinned && entry->last_used != clock_ && (oldest == nullptr || entry->last_used < oldest->last_used))
                oldest = entry.get();
        }
        if (bytes <= budget_ || oldest == nullptr) return dropped;
        dropped.push_back(std::move(oldest->adapter));
        oldest->adapter = nullptr;
        stats_.put_away++;
    }
}

std::vector<std::string> AdapterRegistry::names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) names.push_back(name);
    return names;
}

AdapterRegistry::Stats AdapterRegistry::stats() const {
    const std::lock_guard lock(mutex_);
    Stats stats = stats_;
    stats.budget = budget_;
    for (const auto& [name, entry] : entries_) {
        if (!entry->adapter) continue;
        stats.resident++;
        stats.bytes += entry->bytes;
    }
    return stats;
}

void AdapterRegistry::set_budget(uint64_t bytes) {
    std::vector<std::shared_ptr<const Adapter>> dropped;
    const std::lock_guard lock(mutex_);
    budget_ = bytes;
    clock_++;
    dropped = put_away();
}

void AdapterRegistry::fail_absent(const std::string& name) const {
    std::string list;
    for (const std::string& each : names()) list += (list.empty() ? "" : ", ") + concat('"', each, '"');
    fail(ErrorCode::not_found, "there is no adapter \"", name, "\"; loaded: ", list.empty() ? "none" : list);
}

}  // namespace halfbyte
