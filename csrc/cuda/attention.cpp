// Attention and its cache: [heads][rows][kv_width] elements, plain rows.
#include <algorithm>
#include <bit>

#include "cuda/cuda_device.h"

namespace halfbyte::cuda {

namespace {

constexpr int64_t kLeastBound = 256;  ///< of max_keys, so that steps look alike for long
constexpr int64_t kLeastKeysOfSplit = 128;

Element element_of(DType dtype) {
    switch (dtype) {
        case DType::f32: return Element::f32;
        case DType::f16: return Element::f16;
        case DType::bf16: return Element::bf16;
        case DType::i8: return Element::i8;
        default: fail(ErrorCode::internal, "cuda attention: a cache in ", name_of(dtype));
    }
}

KvSource source_of(const KvView& view, int64_t head_dim) {
    KvSource source{};
    source.data = view.data;
    source.element = element_of(view.dtype);
    if (view.rows == 0) {
        source.head_stride = head_dim, source.row_stride = view.stride;
    } else {
        source.row_stride = kv_width(head_dim), source.head_stride = view.rows * source.row_stride;
        source.scales = view.scales, source.scale_stride = view.rows;
    }
    return source;
}

}  // namespace

void CudaDevice::store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) {
    expect(x.cols == store.heads * store.head_dim && store.rows > 0, "store_kv: ", x.cols, " columns into ", store.heads,
           " heads of ", store.head_dim);
    thread_local std::vector<int32_t> target;  // of keys and of values, layer after layer: the same array is staged once
    target.assign(static_cast<size_t>(x.rows), -1);
    for (const Sequence& s : sequences) {
        const int64_t first = s.first_key + s.keys - s.rows;
        expect(s.first_row >= 0 && s.first_row + s.rows <= x.rows && first >= 0 && first + s.rows <= store.rows,
               "store_kv: rows ", s.first_row, " to ", s.first_row + s.rows, " of ", x.rows, " into rows from ", first,
               " of ", store.rows);
        for (int64_t i = 0; i < s.rows; i++) target[size_t(s.first_row + i)] = int32_t(first + i);
    }
    if (x.rows == 0) return;
    const auto held = core_->lock();
    StoreKv command{};
    command.x = x.data, command.x_stride = x.stride;
    command.target = core_->queue().stage(std::span<const int32_t>(target));
    command.data = store.data, command.scales = store.scales, command.element = element_of(store.dtype);
    command.tokens = int32_t(x.rows), command.heads = int32_t(store.heads), command.head_dim = int32_t(store.head_dim);
    command.rows = store.rows;
    core_->queue().push(Op::store_kv, command);
}

void CudaDevice::attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                           const AttentionParams& params, Tensor out) {
    expect(q.cols == params.heads * params.head_dim && out.cols == q.cols && out.rows == q.rows && params.kv_heads > 0 &&
               params.heads % params.kv_heads == 0,
           "attention: q [", q.rows, ", ", q.cols, "], out [", out.rows, ", ", out.cols, "], ", params.heads, " heads of ",
           params.head_dim, ", ", params.kv_heads, " of keys");
    expect(params.bias == nullptr || sequences.size() == 1, "attention: a bias for ", sequences.size(), " sequences");
    thread_local std::vector<AttentionSequence> staged;
    staged.clear();
    int64_t max_rows = 0, max_keys = 0;
    for (const Sequence& s : sequences) {
        expect(s.first_row >= 0 && s.first_row + s.rows <= q.rows && s.rows <= s.keys &&
                   (k.rows == 0 || s.first_key + s.keys <= k.rows),
               "attention: rows ", s.first_row, " to ", s.first_row + s.rows, " of ", q.rows, ", ", s.keys, " keys");
        staged.push_back({int32_t(s.first_row), int32_t(s.rows), int32_t(s.first_key), int32_t(s.keys)});
        max_rows = std::max(max_rows, s.rows);
        max_keys = std::max(max_keys, s.keys);
    }
    if (max_rows == 0) return;
    Attention command{};
    command.q = q.data, command.q_stride = q.stride;
    command.out = out.data, command.out_stride = out.stride;
    command.k = source_of(k, params.head_dim), command.v = source_of(v, params.head_dim);
    command.count = int32_t(staged.size());
    command.heads = int32_t(params.heads), command.kv_heads = int32_t(params.kv_heads);
    command.head_dim = int32_t(params.head_dim);
    command.scale = params.scale, command.causal = params.causal, command.window = int32_t(params.window);
    command.softcap = params.softcap;
    command.bias = params.bias, command.bias_head_stride = params.bias_head_stride, command.bias_row_stride = max_keys;
    command.exact = precision_ == Precision::float32;
    // A bound that stays the same for many steps: the command, and with it the graph, stays the same.
    const int64_t bound = int64_t(std::bit_ceil(uint64_t(std::max(max_keys, kLeastBound))));
    command.max_rows = int32_t(max_rows);
    command.max_keys = int32_t(max_rows == 1 ? bound : max_keys);
    command.splits = 1;
    const auto held = core_->lock();
    if (max_rows == 1 && params.bias == nullptr) {
        const int64_t blocks = command.count * params.kv_heads, wanted = 2 * core_->info().multiprocessors;
        command.splits = int32_t(std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1,
                                                     std::min<int64_t>(kAttentionSplits, bound / kLeastKeysOfSplit)));
        if (command.splits > 1)
            command.partials = static_cast<float*>(core_->scratch(
                size_t(q.rows * params.heads * command.splits * (kv_width(params.head_dim) + 2)) * sizeof(float)));
    }
    command.sequences = core_->queue().stage(std::span<const AttentionSequence>(staged));
    core_->queue().push(Op::attention, command);
}

}  // namespace halfbyte::cuda
