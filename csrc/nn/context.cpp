#include "nn/context.h"

#include <algorithm>

#include "core/error.h"

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

KvCache::KvCache(Device& device, const KvFormat& format, int64_t slots, int64_t capacity)
    : device_(device), format_(format), slots_(slots), capacity_((capacity + kKvBlock - 1) / kKvBlock * kKvBlock) {
    const DType dtype = format.dtype;
    if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16 && dtype != DType::i8)
        fail(ErrorCode::invalid_argument, "KV cache: expected float32, float16, bfloat16 or integers of 8 bits, found ",
             name_of(dtype));
    const size_t rows = size_t(2 * format.layers * format.heads * slots * capacity_);
    buffer_ = device.allocate(rows * size_t(kv_width(format.head_dim)) * size_of(dtype));
    if (dtype == DType::i8) scales_ = device.allocate(rows * sizeof(float));
}

KvView KvCache::view(int64_t layer, KvRole role) const {
    const int64_t rows = slots_ * capacity_, width = kv_width(format_.head_dim);
    const size_t first = size_t((2 * layer + (role == KvRole::values ? 1 : 0)) * format_.heads * rows);
    KvView view;
    view.data = static_cast<char*>(buffer_.data) + first * size_t(width) * size_of(format_.dtype);
    view.dtype = format_.dtype, view.role = role;
    view.heads = format_.heads, view.head_dim = format_.head_dim, view.rows = rows;
    if (scales_.data != nullptr) view.scales = static_cast<float*>(scales_.data) + first;
    return view;
}

void KvCache::copy_from(const KvCache& other, int64_t tokens) {
    std::vector<uint8_t> bytes;
    const auto copy = [&](void* to, const void* from, size_t size) {
        bytes.resize(size);
        device_.copy_to_host(bytes.data(), from, size);
        device_.copy_to_device(to, bytes.data(), size);
    };
    const int64_t rows = (tokens + kKvBlock - 1) / kKvBlock * kKvBlock;  // the order within a block is the device's
    const size_t row_bytes = size_t(kv_width(format_.head_dim)) * size_of(format_.dtype);
    for (int64_t layer = 0; layer < format_.layers; layer++)
        for (const KvRole role : {KvRole::keys, KvRole::values}) {
            const KvView to = view(layer, role), from = other.view(layer, role);
            for (int64_t head = 0; head < format_.heads; head++) {
                copy(static_cast<char*>(to.data) + size_t(head * to.rows) * row_bytes,
                     static_cast<const char*>(from.data) + size_t(head * from.rows) * row_bytes, size_t(rows) * row_bytes);
                if (to.scales != nullptr)
                    copy(to.scales + head * to.rows, from.scales + head * from.rows, size_t(rows) * sizeof(float));
            }
        }
}

}  // namespace halfbyte
