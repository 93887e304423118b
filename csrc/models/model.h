// A loaded network, and the table of architectures.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nn/layers.h"

namespace halfbyte {

class Loader;

/// Facts that the runtime needs about any network.
struct ModelInfo {
    std::string architecture;  ///< "llama"
    bool causal = false;       ///< a decoder with a KV cache
    bool has_logits = false;   ///< there is an output layer over the vocabulary
    bool tied_output = false;  ///< whose weight is the table of the input embedding
    int64_t vocab_size = 0, hidden_size = 0, layers = 0, max_positions = 0;
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    int64_t token_types = 0;  ///< 0: the network takes no token types
    int64_t labels = 0;       ///< outputs of the classification head; 0: the checkpoint has none (an adapter may bring one)
    bool has_pooler = false;  ///< a head over whole sequences reads the first token through a pooler, as BERT's does
};

/// A layer by the name PEFT gives it, its index being Linear::module, Norm::module or Embedding::module.
struct Module {
    enum class Kind { linear, norm, embedding };
    std::string name;                ///< inside the whole model: "model.layers.0.self_attn.q_proj"
    std::string base_name;           ///< inside the base model alone: "layers.0.self_attn.q_proj"
    std::string gguf_name;           ///< in GGUF files: "blk.0.attn_q"; empty: they have none
    std::vector<int64_t> gguf_rows;  ///< row i of the layer is row gguf_rows[i] of a file of llama.cpp; empty: the same
    Kind kind = Kind::linear;
    bool is_input = false;                      ///< the table of the tokens
    bool is_output = false;                     ///< the layer over the vocabulary
    int64_t in_features = 0, out_features = 0;  ///< tables: dim and count; norms: dim and dim
    bool conv1d = false;                        ///< float weights are stored [in, out] (GPT-2's Conv1D)
    // What the model runs, sharing its memory; the one that `kind` says.
    Linear linear;
    Norm norm;
    Embedding table;
};

/// Immutable after loading: safe to share between threads and sessions.
class Model {
public:
    virtual ~Model() = default;
    /// Hidden states after the final norm, [T, hidden].
    virtual Tensor forward(const Context& context) const = 0;
    /// hidden [n, hidden] -> [n, vocab]. Only where info().has_logits.
    virtual Tensor logits(const Context& context, const Tensor& hidden) const;  // default: Error unsupported
    /// Scores of classes [n, labels] from hidden [n, hidden]: of the token that a head over sequences reads (the first, or the
    /// last of a causal model), or of every token (per_token). Only where info().labels > 0 or all rows have an adapter that
    /// brings a head.
    Tensor classify(const Context& context, const Tensor& hidden, bool per_token) const;

    const ModelInfo& info() const { return info_; }
    const std::vector<Module>& modules() const { return modules_; }
    /// All uploaded weights, for reports: names, storages, sizes.
    struct WeightReport {
        std::string name, storage;
        int64_t rows, cols;
        size_t bytes;
    };
    const std::vector<WeightReport>& weights() const { return weights_; }

    /// True for a tensor or module that the checkpoint may hold and no result of this model passes through (a pooler that
    /// hidden states and embeddings do not use): an adapter of it changes nothing.
    bool unused(std::string_view name) const;

protected:
    friend class Loader;
    ModelInfo info_;
    std::vector<std::string> unused_;  // patterns: see Loader::ignore
    std::vector<Module> modules_;
    std::vector<WeightReport> weights_;
    Linear pooler_, head_;  // no weight where the checkpoint has none
};

/// `pattern` is a whole name, or begins or ends with '*'.
bool matches_pattern(std::string_view pattern, std::string_view name);

struct Architecture {
    std::string_view name;                          ///< "llama": GGUF general.architecture and halfbyte's own word
    std::span<const std::string_view> hf_names;     ///< config.json "architectures" entries that this file runs
    std::span<const std::string_view> model_types;  ///< config.json "model_type" values, for folders without "architectures"
    std::unique_ptr<Model> (*load)(Loader& loader);
};

/// Every architecture of csrc/models/, from a list that CMake generates.
std::span<const Architecture* const> architectures();

}  // namespace halfbyte
