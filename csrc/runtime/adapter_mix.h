// Which adapters run with which rows of a batch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "nn/adapter.h"

namespace halfbyte {

/// What one sequence runs with: nothing, an adapter, or the weighted sum of several: W x + sum of weight * scale * B (A x).
class AdapterMix {
public:
    struct Part {
        std::shared_ptr<const Adapter> adapter;
        float weight = 1;
    };
    AdapterMix() = default;
    explicit AdapterMix(std::shared_ptr<const Adapter> adapter);  ///< null: none
    /// Errors: invalid_argument where several are not plain LoRA, one twice, a weight that is no number.
    explicit AdapterMix(std::vector<Part> parts);

    const std::vector<Part>& parts() const { return parts_; }
    bool empty() const { return parts_.empty(); }
    /// Rows that stand in front of the tokens of a sequence (prompt tuning).
    int64_t prompt_tokens() const { return parts_.empty() ? 0 : parts_[0].adapter->prompt_tokens(); }
    /// Keys that stand in front of them (prefix tuning); at most one of the two is there.
    const Adapter::Prefix* prefix() const { return parts_.empty() ? nullptr : parts_[0].adapter->prefix(); }
    int64_t prefix_tokens() const { return parts_.empty() ? 0 : parts_[0].adapter->prefix_tokens(); }
    int64_t virtual_tokens() const { return prompt_tokens() + prefix_tokens(); }
    int64_t vocab_size(int64_t base) const;   ///< ids from 0 to below this; `base`: of the model
    int64_t output_size(int64_t base) const;  ///< columns of the logits
    int64_t labels(int64_t base) const;       ///< of the classification head; `base`: of the model, perhaps 0

    /// The layers that run, see Batch::layers, and how many of them keep keys and values; `base`: of the model.
    std::span<const int32_t> layers() const {
        return parts_.empty() ? std::span<const int32_t>() : parts_[0].adapter->layers();
    }
    int64_t layer_count(int64_t base) const { return layers().empty() ? base : int64_t(layers().size()); }
    /// Its adapter sleeps until it is invoked (aLoRA).
    bool is_activated() const { return !parts_.empty() && !parts_[0].adapter->invocation_tokens().empty(); }
    /// From which token of a sequence on the adapters act: 0; where one is activated by its invocation tokens, the start of
    /// their last occurrence, or the number of tokens where there is none.
    int64_t first_active(std::span<const int32_t> tokens) const;

private:
    std::vector<Part> parts_;
};

/// True where sequences with these can run together: through the same layers.
bool same_layers(const AdapterMix* a, const AdapterMix* b);
/// Writes the prefix of a mix, if it has one, into a cache whose sequence begins at row first_key.
void store_prefix(Device& device, const AdapterMix& mix, int64_t first_key, KvCache& cache);

/// Batch::adapters and Batch::adapter_rows for rows that each have a mix.
class AdapterBatch {
public:
    /// of_rows: one for each row, null or empty: none. The mixes must outlive this.
    explicit AdapterBatch(std::span<const AdapterMix* const> of_rows);
    std::span<const Adapter* const> adapters() const { return adapters_; }
    std::span<const AdapterRows> rows() const { return rows_; }

private:
    std::vector<const Adapter*> adapters_;
    std::vector<std::vector<int32_t>> row_lists_;
    std::vector<AdapterRows> rows_;
};

}  // namespace halfbyte
