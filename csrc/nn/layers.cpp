#include "nn/layers.h"

#include <algorithm>

#include "nn/adapter_rows.h"

namespace halfbyte {

namespace {

const float* values(const Buffer& buffer) { return static_cast<const float*>(buffer.data); }

/// out = the rows of the table for ids (those below 0 are left alone).
void lookup(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor out, bool accumulate) {
    for (size_t i = 0; i < ids.size();) {
        size_t end = i;
        while (end < ids.size() && ids[end] >= 0) end++;
        if (end > i)
            context.device.embed(table.table, ids.subspan(i, end - i), out.row_range(int64_t(i), int64_t(end - i)),
                                 accumulate);
        i = end;
        while (i < ids.size() && ids[i] < 0) i++;
    }
}

/// What an adapter makes of rows that were looked up.
void adapt_rows(const Context& context, const ModuleAdapter& m, float weight, std::span<const int32_t> ids, Tensor out) {
    if (m.lookup) {
        const Workspace::Scope scope(context.workspace);
        const Tensor inner = context.tensor(out.rows, m.lookup->dim);
        std::vector<int32_t> rows;  // prompts are no rows of the table
        for (size_t i = 0; i < ids.size(); i++)
            if (ids[i] >= 0) rows.push_back(int32_t(i));
        lookup(context, *m.lookup, ids, inner, false);
        const LinearAdapter* adapter = &m.linear;
        const AdapterRows of{rows.data(), int64_t(rows.size()), weight};
        if (!rows.empty()) context.device.adapt(inner, {&adapter, 1}, {&of, 1}, nullptr, out);
    }
    if (m.rows)
        for (size_t i = 0; i < ids.size(); i++) {
            const auto found = std::lower_bound(m.row_of.begin(), m.row_of.end(), std::pair<int32_t, int32_t>(ids[i], 0));
            if (found == m.row_of.end() || found->first != ids[i]) continue;
            context.device.embed(m.rows->table, {&found->second, 1}, out.row_range(int64_t(i), 1), false);
        }
}

/// norm(x) -> out, by the norm that the adapter of each row has.
template <class F>
void norm_rows(const Context& context, const Norm& norm, const Tensor& x, Tensor out, F apply) {
    const auto is_norm = [](const ModuleAdapter& m) { return m.norm != nullptr; };
    if (!changes(context, norm.module, is_norm)) return apply(norm, x, out);
    std::vector<const Norm*> of(static_cast<size_t>(x.rows), &norm);
    for_changed_rows(context, norm.module, x.rows, [&](const ModuleAdapter& m, int64_t first, int64_t count) {
        if (is_norm(m)) std::fill_n(of.begin() + first, count, m.norm.get());
    });
    for (int64_t first = 0; first < x.rows;) {
        int64_t end = first + 1;
        while (end < x.rows && of[size_t(end)] == of[size_t(first)]) end++;
        apply(*of[size_t(first)], x.row_range(first, end - first), out.row_range(first, end - first));
        first = end;
    }
}

}  // namespace

Tensor embed(const Context& context, const Embedding& table, std::span<const int32_t> ids) {
    const Tensor out = context.tensor(int64_t(ids.size()), table.dim);
    embed(context, table, ids, out, false);
    return out;
}

void embed_add(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor x) {
    embed(context, table, ids, x, true);
}

void embed(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor x, bool accumulate) {
    const Batch& batch = context.batch;
    const bool prompts = std::any_of(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
    const auto any = [](const ModuleAdapter&) { return true; };
    if (!prompts && !changes(context, table.module, any)) return context.device.embed(table.table, ids, x, accumulate);

    const Workspace::Scope scope(context.workspace);
    // A row that an adapter replaces may be of a token that the table does not have: each row is looked up once, in its own table.
    const Tensor out = accumulate ? context.tensor(x.rows, x.cols) : x;
    std::vector<int32_t> base(ids.begin(), ids.end());
    for_changed_rows(context, table.module, x.rows, [&](const ModuleAdapter& m, int64_t first, int64_t count) {
        if (m.table) std::fill_n(base.begin() + first, count, -1);
    });
    lookup(context, table, base, out, false);
    for (size_t i = 0; i < batch.adapters.size(); i++) {
        const ModuleAdapter* m = batch.adapters[i]->find(table.module, context.pass);
        const Embedding* prompt = prompts ? batch.adapters[i]->prompt() : nullptr;
        for_runs(batch.adapter_rows[i], x.rows, [&](int64_t first, int64_t count) {
            const auto mine = ids.subspan(size_t(first), size_t(count));
            if (m != nullptr && m->table) lookup(context, *m->table, mine, out.row_range(first, count), false);
            if (m != nullptr) adapt_rows(context, *m, batch.adapter_rows[i].weight, mine, out.row_range(first, count));
            for (int64_t r = 0; prompt != nullptr && r < count; r++) {
                const int32_t row = -1 - mine[size_t(r)];
                if (row >= 0) context.device.embed(prompt->table, {&row, 1}, out.row_range(first + r, 1), false);
            }
        });
    }
    if (accumulate) context.device.add(x, out);
}

Tensor layer_norm(const Context& context, const Norm& norm, const Tensor& x) {
    const Tensor out = context.tensor(x.rows, x.cols);
    layer_norm(context, norm, x, out);
    return out;
}

void layer_norm(const Context& context, const Norm& norm, const Tensor& x, Tensor out) {
    norm_rows(context, norm, x, out, [&](const Norm& n, const Tensor& from, Tensor to) {
        context.device.layer_norm(from, values(n.gamma), values(n.beta), n.eps, to);
    });
}

Tensor rms_norm(const Context& context, const Norm& norm, const Tensor& x) {
    const Tensor out = context.tensor(x.rows, x.cols);
    norm_rows(context, norm, x, out, [&](const Norm& n, const Tensor& from, Tensor to) {
        context.device.rms_norm(from, values(n.gamma), n.eps, to);
    });
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
