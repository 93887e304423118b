// An adapter bound to one model: what it does to each of its modules, beside the weights, never in them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device/device.h"
#include "nn/layers.h"

namespace halfbyte {

/// What an adapter does to one linear layer, norm or table. At most one of `replaced`, `norm`, `table` is there.
struct ModuleAdapter {
    LinearAdapter linear;  ///< of a linear layer
    Buffer input_gain;     ///< f32 [in] or empty; multiplies what a linear layer reads ((IA)^3, feed-forward layers)
    std::unique_ptr<Linear> replaced;  ///< a linear layer that was trained whole; `linear` comes on top
    std::unique_ptr<Norm> norm;
    std::unique_ptr<Embedding> table;  ///< a table that was trained whole

    /// LoRA of a table: rows of `lookup` [count, r] through `linear`, whose A is the identity.
    std::unique_ptr<Embedding> lookup;

    /// Rows of a table (or outputs of a layer over the vocabulary) that were trained: `rows` [n, dim] take their place.
    std::vector<std::pair<int32_t, int32_t>> row_of;  ///< (token, row), ascending
    std::unique_ptr<Embedding> rows;                  ///< for a table
    std::unique_ptr<Linear> row_outputs;              ///< for a layer over the vocabulary
    std::vector<int32_t> columns;                     ///< their tokens, in the order of row_outputs

    /// Nothing but A and B (and a trained bias beside them): what may be added with a weight.
    bool is_sum() const;
};

/// Immutable once made; shared by every session that uses it.
class Adapter {
public:
    /// Keys and values that stand in front of every sequence (prefix tuning), float32 [tokens, kv_heads * head_dim] each, on
    /// the device, for every layer.
    struct Prefix {
        int64_t tokens = 0;
        std::vector<std::pair<Buffer, Buffer>> layers;
    };

    explicit Adapter(std::string name) : name_(std::move(name)) {}
    const std::string& name() const { return name_; }
    const std::string& kind() const { return kind_; }  ///< PEFT's peft_type: "LORA", "IA3", ...

    /// Of a module: its index, and in a model whose layers the adapter repeats, which of the repetitions (Context::pass).
    using Place = std::pair<int64_t, int>;  // pass, module
    /// What it does to module index `module`; null if nothing.
    const ModuleAdapter* find(int module, int64_t pass) const;
    const std::map<Place, ModuleAdapter>& modules() const { return modules_; }
    /// Layers of the model in the order in which they run (layer_replication); empty: each once.
    const std::vector<int32_t>& layers() const { return layers_; }
    /// Prompts in front of every sequence as rows of the embedding, [tokens, hidden] (prompt tuning); null: none.
    const Embedding* prompt() const { return prompt_.get(); }
    const Prefix* prefix() const { return prefix_.tokens > 0 ? &prefix_ : nullptr; }
    int64_t prompt_tokens() const { return prompt_ ? prompt_->count : 0; }
    int64_t prefix_tokens() const { return prefix_.tokens; }
    /// Activated LoRA (arXiv:2504.12397): it begins with the last occurrence of these tokens in a sequence. Empty: everywhere.
    const std::vector<int32_t>& invocation_tokens() const { return invocation_tokens_; }
    int64_t vocab_size() const { return vocab_size_; }    ///< tokens of its own embedding; 0: it has none
    int64_t output_size() const { return output_size_; }  ///< columns of its own layer over the vocabulary; 0: it has none
    int64_t labels() const { return labels_; }            ///< outputs of its classification head; 0: it has none
    /// True where it may be added to others with a weight: LoRA and nothing else.
    bool is_sum() const;
    size_t bytes() const;  ///< on the device

private:
    friend class AdapterBuilder;
    std::string name_, kind_ = "LORA";
    std::map<Place, ModuleAdapter> modules_;
    std::vector<int32_t> layers_;
    std::unique_ptr<Embedding> prompt_;
    Prefix prefix_;
    std::vector<int32_t> invocation_tokens_;
    int64_t vocab_size_ = 0, output_size_ = 0, labels_ = 0;
};

}  // namespace halfbyte
