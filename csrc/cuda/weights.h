// Weights on the device: tiles (commands.h), and where they came from.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>

#include "core/thread_pool.h"
#include "core/weight.h"
#include "cuda/commands.h"

namespace halfbyte::cuda {

class Core;

/// What plane 0 of an uploaded Weight points to.
struct DeviceWeight {
    TiledWeight tiles{};
    Weight source;  ///< what upload() was given: a mapped file, mostly, that takes no memory
    /// Codes in pinned host memory, where the device has no room: they are streamed to it for each use. tiles.codes is null then.
    const void* host_codes = nullptr;
    size_t code_bytes = 0;
    std::shared_ptr<Core> core;
    void* codes = nullptr;  ///< on the device
    void* rest = nullptr;   ///< scales, offsets, levels, nested scales: on the device
    void* pinned = nullptr;
    ~DeviceWeight();
};

/// The storage of uploaded weights: only this device reads them.
const Storage& tiles_storage();
const DeviceWeight& device_weight(const Weight& weight);

/// Packs and uploads; a weight that is uploaded twice (a tied table) is on the device once. Safe to call from many threads.
class WeightUploader {
public:
    Weight upload(const std::shared_ptr<Core>& core, const Weight& weight, ThreadPool& pool);

private:
    std::mutex mutex_;
    std::unordered_map<const void*, std::weak_ptr<const DeviceWeight>> known_;  ///< by plane 0 of the source
};

}  // namespace halfbyte::cuda
