// What a forward pass carries with it: the device, scratch memory, the batch, the caches and adapters in use.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"

namespace halfbyte {

class Adapter;

/// Scratch tensors by bumping a pointer through blocks of device memory that stay allocated for the next step.
class Workspace {
public:
    explicit Workspace(Device& device) : device_(device) {}
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    Tensor tensor(int64_t rows, int64_t cols);  ///< contents undefined; valid until the enclosing Scope ends
    size_t bytes() const;                       ///< held in all

    /// Frees what was taken since it was made.
    class Scope {
    public:
        explicit Scope(Workspace& workspace) : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {}
        ~Scope() { workspace_.block_ = block_, workspace_.used_ = used_; }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

    private:
        Workspace& workspace_;
        size_t block_, used_;
    };

private:
    Device& device_;
    std::vector<Buffer> blocks_;
    size_t block_ = 0, used_ = 0;
};

/// What a cache holds: f32, f16, bf16 or i8 elements, `heads` heads of `head_dim` for each of keys and values.
struct KvFormat {
    DType dtype = DType::f16;
    int64_t layers = 0, heads = 0, head_dim = 0;
};

/// Keys and values of every layer, `slots` sequences of up to `capacity` tokens each (rounded up to whole blocks). Slot i
/// begins at row i * capacity().
class KvCache {
public:
    /// Errors: invalid_argument (a dtype that no cache has), out_of_memory.
    KvCache(Device& device, const KvFormat& format, int64_t slots, int64_t capacity);
    int64_t capacity() const { return capacity_; }
    int64_t slots() const { return slots_; }
    KvView keys(int64_t layer) const { return view(layer, KvRole::keys); }  ///< of slots * capacity rows
    KvView values(int64_t layer) const { return view(layer, KvRole::values); }
    size_t bytes() const { return buffer_.bytes + scales_.bytes; }
    /// Takes over the first `tokens` tokens of slot 0 from a cache of the same format. Through the host: rare, and the op
    /// vocabulary needs no word for it.
    void copy_from(const KvCache& other, int64_t tokens);

private:
    KvView view(int64_t layer, KvRole role) const;
    Device& device_;
    KvFormat format_;
    int64_t slots_, capacity_;
    Buffer buffer_;  // [layers][keys, values][heads][slots * capacity][kv_width(head_dim)]
    Buffer scales_;  // [layers][keys, values][heads][slots * capacity] of i8
};

/// Packed tokens of several sequences; no padding. All arrays are host memory of T = tokens.size() elements.
struct Batch {
    /// Ids; -1 - i where row i of the prompt of the adapter stands in the place of a token (prompt tuning).
    std::span<const int32_t> tokens;
    std::span<const int32_t> positions;
    std::span<const int32_t> token_types;       ///< empty: all 0
    std::span<const Sequence> sequences;        ///< cover rows 0 .. T-1 in order
    std::span<const Adapter* const> adapters;   ///< adapters in use; empty: none
    std::span<const AdapterRows> adapter_rows;  ///< for each of them
    std::span<const int32_t> layers = {};       ///< the layers to run, one after the other; empty: each once, in order
};

struct Context {
    Device& device;
    Workspace& workspace;
    const Batch& batch;
    KvCache* cache = nullptr;  ///< null for encoders
    int64_t pass = -1;  ///< where Batch::layers says which layers run: the how manieth of them this is; -1 outside of layers

    int64_t layers(int64_t own) const { return batch.layers.empty() ? own : int64_t(batch.layers.size()); }
    int64_t layer(int64_t i) const { return batch.layers.empty() ? i : batch.layers[size_t(i)]; }
    Context in_layer(int64_t i) const { return {device, workspace, batch, cache, batch.layers.empty() ? -1 : i}; }
    Tensor tensor(int64_t rows, int64_t cols) const { return workspace.tensor(rows, cols); }
    int64_t tokens() const { return int64_t(batch.tokens.size()); }
};

}  // namespace halfbyte
