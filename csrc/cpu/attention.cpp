// Attention on the CPU: what is one task, and the cache's layout in terms of its heads and blocks.
#include <algorithm>
#include <vector>

#include "cpu/cpu_device.h"
#include "cpu/memory.h"

namespace halfbyte::cpu {

namespace {

static_assert(kKvBlock == kKeyBlock, "the blocks of device.h are those of the kernels");

KvKind kv_kind(DType dtype, const char* op) {
    switch (dtype) {
        case DType::f32: return kKvF32;
        case DType::f16: return kKvF16;
        case DType::bf16: return kKvBf16;
        case DType::i8: return kKvI8;
        default: fail(ErrorCode::internal, "cpu ", op, ": keys or values of ", name_of(dtype));
    }
}

/// Where the rows of one head begin that follow `row`, a multiple of kKvBlock.
void* at(const KvView& view, int64_t head, int64_t row) {
    const int64_t width = kv_width(view.head_dim);
    return static_cast<char*>(view.data) + size_t((head * view.rows + row) * width) * size_of(view.dtype);
}

float* scales_at(const KvView& view, int64_t head, int64_t row) {
    return view.scales == nullptr ? nullptr : view.scales + head * view.rows + row;
}

void check_cache(const KvView& view, KvRole role, const char* op) {
    expect(view.role == role && view.heads > 0 && view.head_dim > 0 && view.rows % kKvBlock == 0 &&
               (view.dtype == DType::i8) == (view.scales != nullptr),
           op, ": a cache of ", name_of(view.dtype), " with ", view.rows, " rows, ", view.heads, " heads of ",
           view.head_dim);
}

// (query, head) rows of one task. Against a cache their sums of values stay in the L1 or L2 cache while keys stream by; keys
// that are activations are transposed once a task, which should serve many rows.
constexpr int64_t kCacheRows = 96, kActivationRows = 384;
// A task with at most so many rows may share its keys out to several tasks: reading them is most of its work.
constexpr int64_t kSplitRows = 32;

/// How the work of one sequence is split. The split depends on the sequence alone, and so do its sums: no result depends on
/// the number of threads.
struct Split {
    int64_t first_task = 0, tasks = 0;
    int64_t queries = 1, blocks = 0;  ///< queries of one task; blocks of queries
    int64_t first_key = 0;            ///< that any query sees, rounded down
    int64_t range = 0, ranges = 1;    ///< keys of one task; ranges of keys
    int64_t parts = 0;                ///< floats before its parts in the buffer of all parts
};

Split split_of(const Sequence& s, const AttentionParams& params, bool cache) {
    const int64_t group = params.heads / params.kv_heads;
    Split split;
    split.queries = std::max<int64_t>(1, (cache ? kCacheRows : kActivationRows) / group);
    split.blocks = (s.rows + split.queries - 1) / split.queries;
    if (params.window > 0) split.first_key = std::max<int64_t>(0, s.keys - s.rows + 1 - params.window);
    split.first_key = split.first_key / kScoreBlock * kScoreBlock;
    split.range = s.keys - split.first_key;
    if (cache && split.blocks == 1 && s.rows * group <= kSplitRows) {
        // At most 32 ranges: enough for as many threads and heads, and merging stays a small part of the work.
        const int64_t blocks = (split.range + kScoreBlock - 1) / kScoreBlock;
        split.range = std::max<int64_t>(1, (blocks + 31) / 32) * kScoreBlock;
        split.ranges = std::max<int64_t>(1, (s.keys - split.first_key + split.range - 1) / split.range);
    }
    split.tasks = params.kv_heads * split.blocks * split.ranges;
    return split;
}

}  // namespace

void CpuDevice::store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) {
    check_cache(store, store.role, "store_kv");
    const KvKind kind = kv_kind(store.dtype, "store_kv");
    expect(x.cols == store.heads * store.head_dim, "store_kv: ", x.cols, " columns for ", store.heads, " heads of ",
           store.head_dim);
    const auto put = store.role == KvRole::keys ? kernels_.store_keys[kind] : kernels_.store_values[kind];
    for (const Sequence& s : sequences) {
        expect(s.first_row >= 0 && s.first_row + s.rows <= x.rows && s.keys >= s.rows && s.first_key % kKvBlock == 0 &&
                   s.first_key + s.keys <= store.rows,
               "store_kv: rows ", s.first_row, " to ", s.first_row + s.rows, " of ", x.rows, " behind ", s.keys - s.rows,
               " keys at ", s.first_key, " of ", store.rows);
        for_rows(store.heads, s.rows * store.head_dim, [&](int64_t first, int64_t last) {
            for (int64_t head = first; head < last; head++)
                put(x.row(s.first_row) + head * store.head_dim, x.stride, s.rows, store.head_dim, s.keys - s.rows,
                    at(store, head, s.first_key), scales_at(store, head, s.first_key));
        });
    }
}

void CpuDevice::attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                          const AttentionParams& params, Tensor out) {
    expect_same_shape(q, out, "attention");
    expect(params.kv_heads > 0 && params.heads % params.kv_heads == 0 && q.cols == params.heads * params.head_dim,
           "attention: ", q.cols, " columns for ", params.heads, " heads of ", params.head_dim, " over ", params.kv_heads,
           " key/value heads");
    const bool cache = k.rows > 0;
    expect(k.dtype == v.dtype && k.rows == v.rows && (cache || k.dtype == DType::f32), "attention: ", k.rows, " rows of ",
           name_of(k.dtype), " as keys, ", v.rows, " rows of ", name_of(v.dtype), " as values");
    if (cache) {
        check_cache(k, KvRole::keys, "attention");
        check_cache(v, KvRole::values, "attention");
        expect(k.heads == params.kv_heads && v.heads == params.kv_heads && k.head_dim == params.head_dim &&
                   v.head_dim == params.head_dim,
               "attention: a cache of ", k.heads, " heads of ", k.head_dim, " for ", params.kv_heads, " of ",
               params.head_dim);
    }
    expect(params.bias == nullptr || sequences.size() == 1, "attention: a bias with ", sequences.size(), " sequences");
    const KvKind kind = kv_kind(k.dtype, "attention");
    const int64_t group = params.heads / params.kv_heads, dim = params.head_dim, width = kv_width(dim);

    std::vector<Split> splits;
    splits.reserve(sequences.size());
    int64_t tasks = 0, work = 0, parts = 0, most_rows = 0, most_keys = 0;
    for (const Sequence& s : sequences) {
        expect(s.first_row >= 0 && s.first_row + s.rows <= q.rows &&
                   (s.keys >= s.rows || !(params.causal || params.window > 0)) &&
                   (!cache || (s.first_key % kKvBlock == 0 && s.first_key + s.keys <= k.rows)),
               "attention: rows ", s.first_row, " to ", s.first_row + s.rows, " of ", q.rows, " against ", s.keys,
               " keys at ", s.first_key, " of ", k.rows);
        Split& split = splits.emplace_back(split_of(s, params, cache));
        split.first_task = tasks, split.parts = parts;
        tasks += split.tasks;
        work += s.rows * s.keys * q.cols;
        if (split.ranges > 1) parts += split.tasks * partial_size(s.rows * group, dim);
        most_rows = std::max(most_rows, std::min(s.rows, split.queries) * group);
        most_keys = std::max(most_keys, s.keys);
    }
    auto* const all_parts =
        parts == 0 ? nullptr : static_cast<float*>(scratch(Scratch::attention_parts, size_t(parts) * sizeof(float)));
    // Activations are brought into the layout of a cache, by each task for itself.
    const int64_t block_keys = (most_keys + kKeyBlock - 1) / kKeyBlock * kKeyBlock;

    const auto run = [&](int64_t first, int64_t last) {
        auto* const memory =
            static_cast<float*>(scratch(Scratch::attention, size_t(attention_scratch(most_rows, dim)) * sizeof(float)));
        float* const keys =
            cache
                ? nullptr
                : static_cast<float*>(scratch(Scratch::attention_keys, size_t(block_keys * (dim + width)) * sizeof(float)));
        float* const values = cache ? nullptr : keys + block_keys * dim;
        for (int64_t task = first; task < last; task++) {
            const auto after = std::upper_bound(splits.begin(), splits.end(), task,
                                                [](int64_t t, const Split& split) { return t < split.first_task; });
            const Split& split = *(after - 1);
            const Sequence& s = sequences[size_t(after - 1 - splits.begin())];
            // Ranges of keys, then blocks of queries are the inner index: neighbouring tasks share or continue a stream of keys.
            const int64_t within = task - split.first_task, range = within % split.ranges;
            const int64_t head = within / split.ranges / split.blocks;
            const int64_t query = within / split.ranges % split.blocks * split.queries;
            AttentionTask t;
            t.queries = std::min(split.queries, s.rows - query), t.group = group, t.head_dim = dim;
            t.q_stride = q.stride, t.q = q.row(s.first_row + query) + head * group * dim;
            t.out_stride = out.stride, t.out = out.row(s.first_row + query) + head * group * dim;
            t.keys = s.keys;
            t.first_key = split.first_key + range * split.range;
            t.last_key = std::min(s.keys, t.first_key + split.range);
            t.first_position = s.keys - s.rows + query;
            t.causal = params.causal, t.window = params.window, t.scale = params.scale, t.softcap = params.softcap;
            if (params.bias != nullptr) {
                t.bias = params.bias + head * group * params.bias_head_stride + query * s.keys;
                t.bias_head_stride = params.bias_head_stride;
            }
            if (split.ranges > 1) t.partial = all_parts + split.parts + within * partial_size(s.rows * group, dim);
            t.scratch = memory;
            if (cache) {
                t.k = at(k, head, s.first_key), t.v = at(v, head, s.first_key);
                t.k_scales = scales_at(k, head, s.first_key), t.v_scales = scales_at(v, head, s.first_key);
            } else {
                const auto* from_k = static_cast<const float*>(k.data) + s.first_key * k.stride + head * dim;
                const auto* from_v = static_cast<const float*>(v.data) + s.first_key * v.stride + head * dim;
                kernels_.store_keys[kKvF32](from_k, k.stride, s.keys, dim, 0, keys, nullptr);
                kernels_.store_values[kKvF32](from_v, v.stride, s.keys, dim, 0, values, nullptr);
                t.k = keys, t.v = values;
            }
            kernels_.attention[kind](t);
        }
    };
    const bool alone = work < 4 * kMinimumWork;
    if (alone)
        run(0, tasks);
    else
        pool_.parallel_for(tasks, 1, run);

    for (size_t i = 0; i < splits.size(); i++) {
        const Split& split = splits[i];
        const Sequence& s = sequences[i];
        if (split.ranges == 1) continue;
        const int64_t size = partial_size(s.rows * group, dim);
        for_rows(params.kv_heads, split.ranges * s.rows * group * width, [&](int64_t first, int64_t last) {
            for (int64_t head = first; head < last; head++)
                kernels_.merge_attention(all_parts + split.parts + head * split.ranges * size, split.ranges, s.rows, group,
                                         dim, out.row(s.first_row) + head * group * dim, out.stride);
        });
    }
}

}  // namespace halfbyte::cpu
