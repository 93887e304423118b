// Which rows of a batch an adapter changes, as runs of neighbours: sequences are runs.
#pragma once

#include "core/thread_pool.h"
#include "nn/adapter.h"

namespace halfbyte {

/// True if `which` holds for what any adapter of the batch does to a module.
template <class F>
bool changes(const Context& context, int module, F which) {
    for (const Adapter* adapter : context.batch.adapters)
        if (const ModuleAdapter* m = adapter->find(module, context.pass); m != nullptr && which(*m)) return true;
    return false;
}

/// f(first, count) for the runs of rows of `of` within `total` rows.
template <class F>
void for_runs(const AdapterRows& of, int64_t total, F f) {
    if (of.count == AdapterRows::kAll) return total > 0 ? f(int64_t(0), total) : void();
    for (int64_t i = 0; i < of.count;) {
        int64_t end = i + 1;
        while (end < of.count && of.rows[end] == of.rows[end - 1] + 1) end++;
        f(int64_t(of.rows[i]), end - i);
        i = end;
    }
}

/// f(what the adapter does to the module, first row, rows) for every adapter of the batch that changes the module.
template <class F>
void for_changed_rows(const Context& context, int module, int64_t total, F f) {
    const Batch& batch = context.batch;
    for (size_t i = 0; i < batch.adapters.size(); i++) {
        const ModuleAdapter* m = batch.adapters[i]->find(module, context.pass);
        if (m == nullptr) continue;
        for_runs(batch.adapter_rows[i], total, [&](int64_t first, int64_t count) { f(*m, first, count); });
    }
}

}  // namespace halfbyte
