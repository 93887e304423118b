#include "nn/context.h"

#include <algorithm>

namespace halfbyte {

namespace {
constexpr size_t kAlignment = 64;
constexpr int64_t kBadStride = 1024;  // floats: rows a multiple of 4 KiB apart fight for the same lines of a cache
constexpr size_t kSmallestBlock = size_t(1) << 20;
}  // namespace

Tensor Workspace::tensor(int64_t rows, int64_t cols) {
    const int64_t stride = rows > 1 && cols % kBadStride == 0 ? cols + int64_t(kAlignment / sizeof(float)) : cols;
    const size_t wanted = size_t(std::max<int64_t>(rows * stride, 1)) * sizeof(float);
    const size_t bytes = (wanted + kAlignment - 1) / kAlignment * kAlignment;
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes) block_++, used_ = 0;
    if (block_ == blocks_.size()) {
        const size_t grown = blocks_.empty() ? kSmallestBlock : 2 * blocks_.back().bytes;
        blocks_.push_back(device_.allocate(std::max(bytes, grown)));
        used_ = 0;
    }
    auto* data = reinterpret_cast<float*>(static_cast<char*>(blocks_[block_].data) + used_);
    used_ += bytes;
    return {data, rows, cols, stride};
}

size_t Workspace::bytes() const {
    size_t total = 0;
    for (const Buffer& block : blocks_) total += block.bytes;
    return total;
}

KvCache::KvCache(Device& device, int64_t layers, int64_t slots, int64_t capacity, int64_t width)
    : slots_(slots), capacity_(capacity), width_(width), dtype_(device.cache_dtype()) {
    buffer_ = device.allocate(size_t(2 * layers * slots * capacity * width) * size_of(dtype_));
}

KvView KvCache::view(int64_t index) const {
    const size_t offset = size_t(index * slots_ * capacity_ * width_) * size_of(dtype_);
    return {static_cast<char*>(buffer_.data) + offset, dtype_, width_};
}

}  // namespace halfbyte
