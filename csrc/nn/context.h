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

/// Keys and values of every layer, `slots` sequences of up to `capacity` tokens each.
class KvCache {
public:
    KvCache(Device& device, int64_t layers, int64_t slots, int64_t capacity, int64_t width);
    int64_t capacity() const { return capacity_; }
    int64_t slots() const { return slots_; }
    KvView keys(int64_t layer) const { return view(2 * layer); }  ///< [slots * capacity, width]
    KvView values(int64_t layer) const { return view(2 * layer + 1); }
    size_t bytes() const { return buffer_.bytes; }

private:
    KvView view(int64_t index) const;
    int64_t slots_, capacity_, width_;
    DType dtype_;
    Buffer buffer_;
};

/// Packed tokens of several sequences; no padding. All arrays are host memory of T = tokens.size() elements.
struct Batch {
    std::span<const int32_t> tokens;
    std::span<const int32_t> positions;
    std::span<const int32_t> token_types;      ///< empty: all 0
    std::span<const Sequence> sequences;       ///< cover rows 0 .. T-1 in order
    std::span<const Adapter* const> adapters;  ///< adapters in use; empty: none
    const int32_t* row_adapter = nullptr;      ///< [T] index into adapters or -1; null: adapters[0] everywhere
};

struct Context {
    Device& device;
    Workspace& workspace;
    const Batch& batch;
    KvCache* cache = nullptr;  ///< null for encoders

    Tensor tensor(int64_t rows, int64_t cols) const { return workspace.tensor(rows, cols); }
    int64_t tokens() const { return int64_t(batch.tokens.size()); }
};

}  // namespace halfbyte
