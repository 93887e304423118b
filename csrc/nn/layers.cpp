#include "nn/layers.h"

namespace halfbyte {

namespace {
const float* values(const Buffer& buffer) { return static_cast<const float*>(buffer.data); }
}  // namespace

Tensor embed(const Context& context, const Embedding& table, std::span<const int32_t> ids) {
    Tensor out = context.tensor(int64_t(ids.size()), table.dim);
    context.device.embed(table.table, ids, out, false);
    return out;
}

void embed_add(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor x) {
    context.device.embed(table.table, ids, x, true);
}

Tensor layer_norm(const Context& context, const Norm& norm, const Tensor& x) {
    Tensor out = context.tensor(x.rows, x.cols);
    context.device.layer_norm(x, values(norm.gamma), values(norm.beta), norm.eps, out);
    return out;
}

Tensor rms_norm(const Context& context, const Norm& norm, const Tensor& x) {
    Tensor out = context.tensor(x.rows, x.cols);
    context.device.rms_norm(x, values(norm.gamma), norm.eps, out);
    return out;
}

void rope(const Context& context, const Rope& rope, int64_t head_dim, Tensor x) {
    context.device.rope(x, head_dim, context.batch.positions, rope.frequencies, rope.magnitude, rope.style);
}

Tensor attention(const Context& context, int64_t layer, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionParams& params) {
    Tensor out = context.tensor(q.rows, params.heads * params.head_dim);
    const auto sequences = context.batch.sequences;
    if (context.cache != nullptr) {
        const KvView keys = context.cache->keys(layer), values = context.cache->values(layer);
        context.device.store_kv(k, sequences, keys);
        context.device.store_kv(v, sequences, values);
        context.device.attention(q, keys, values, sequences, params, out);
    } else {
        // The keys of each sequence are its own rows of this batch.
        std::vector<Sequence> within(sequences.begin(), sequences.end());
        for (Sequence& sequence : within) sequence.first_key = sequence.first_row, sequence.keys = sequence.rows;
        KvView keys, values;
        keys.data = k.data, keys.stride = k.stride;
        values.data = v.data, values.stride = v.stride, values.role = KvRole::values;
        context.device.attention(q, keys, values, within, params, out);
    }
    return out;
}

}  // namespace halfbyte
