#include "runtime/adapter_mix.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace halfbyte {

AdapterMix::AdapterMix(std::shared_ptr<const Adapter> adapter) {
    if (adapter != nullptr) parts_.push_back({std::move(adapter), 1.0f});
}

AdapterMix::AdapterMix(std::vector<Part> parts) : parts_(std::move(parts)) {
    for (size_t i = 0; i < parts_.size(); i++) {
        const std::string& name = parts_[i].adapter->name();
        if (!std::isfinite(parts_[i].weight))
            fail(ErrorCode::invalid_argument, "adapter \"", name, "\": its weight must be a finite number");
        if ((parts_.size() > 1 || parts_[i].weight != 1) && !parts_[i].adapter->is_sum())
            fail(ErrorCode::invalid_argument, "adapter \"", name, "\" is not a plain LoRA (its kind is ",
                 parts_[i].adapter->kind(),
                 ", or it has DoRA, an invocation or modules that were trained whole): it runs alone and with weight 1");
        for (size_t j = 0; j < i; j++)
            if (parts_[j].adapter == parts_[i].adapter)
                fail(ErrorCode::invalid_argument, "adapter \"", name, "\" is named twice; add up its weights");
    }
}

int64_t AdapterMix::vocab_size(int64_t base) const {
    const int64_t own = parts_.empty() ? 0 : parts_[0].adapter->vocab_size();
    return own > 0 ? own : base;
}

int64_t AdapterMix::output_size(int64_t base) const {
    const int64_t own = parts_.empty() ? 0 : parts_[0].adapter->output_size();
    return own > 0 ? own : base;
}

int64_t AdapterMix::labels(int64_t base) const {
    const int64_t own = parts_.empty() ? 0 : parts_[0].adapter->labels();
    return own > 0 ? own : base;
}

int64_t AdapterMix::first_active(std::span<const int32_t> tokens) const {
    if (parts_.empty()) return 0;
    const std::vector<int32_t>& invocation = parts_[0].adapter->invocation_tokens();
    if (invocation.empty()) return 0;
    return std::find_end(tokens.begin(), tokens.end(), invocation.begin(), invocation.end()) - tokens.begin();
}

bool same_layers(const AdapterMix* a, const AdapterMix* b) {
    const std::span<const int32_t> none;
    return std::ranges::equal(a == nullptr ? none : a->layers(), b == nullptr ? none : b->layers());
}

void store_prefix(Device& device, const AdapterMix& mix, int64_t first_key, KvCache& cache) {
    const Adapter::Prefix* prefix = mix.prefix();
    if (prefix == nullptr) return;
    const Sequence all{.first_row = 0, .rows = prefix->tokens, .first_key = first_key, .keys = prefix->tokens};
    for (size_t layer = 0; layer < prefix->layers.size(); layer++) {
        const KvView keys = cache.keys(int64_t(layer)), values = cache.values(int64_t(layer));
        const auto tensor = [&](const Buffer& buffer) {
            return Tensor(static_cast<float*>(buffer.data), prefix->tokens, keys.heads * keys.head_dim);
        };
        device.store_kv(tensor(prefix->layers[layer].first), {&all, 1}, keys);
        device.store_kv(tensor(prefix->layers[layer].second), {&all, 1}, values);
    }
}

AdapterBatch::AdapterBatch(std::span<const AdapterMix* const> of_rows) {
    // Rows of one sequence are neighbours and have one mix: what was found for the row before is mostly what is wanted.
    std::vector<float> weights;
    const AdapterMix* last = nullptr;
    std::vector<size_t> places;
    for (size_t row = 0; row < of_rows.size(); row++) {
        const AdapterMix* mix = of_rows[row];
        if (mix == nullptr || mix->empty()) continue;
        if (mix != last) {
            last = mix;
            places.clear();
            for (const AdapterMix::Part& part : mix->parts()) {
                size_t at = 0;
                while (at < adapters_.size() && (adapters_[at] != part.adapter.get() || weights[at] != part.weight)) at++;
                if (at == adapters_.size()) {
                    adapters_.push_back(part.adapter.get());
                    weights.push_back(part.weight);
                    row_lists_.emplace_back();
                }
                places.push_back(at);
            }
        }
        for (const size_t at : places) row_lists_[at].push_back(int32_t(row));
    }
    for (size_t i = 0; i < adapters_.size(); i++) {
        const bool all = row_lists_[i].size() == of_rows.size();
        rows_.push_back({row_lists_[i].data(), all ? AdapterRows::kAll : int64_t(row_lists_[i].size()), weights[i]});
    }
}

}  // namespace halfbyte
