// Turns named tensors of a checkpoint into layers on a device, and keeps account: nothing in the file may be left unread.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "models/model.h"

namespace halfbyte {

/// A tensor of a checkpoint and what an architecture does with it: what a converter has to know.
struct PlannedTensor {
    enum class Role { linear, output, embedding, vector };
    std::string tensor;  ///< in the checkpoint
    std::string hf;      ///< its name in a Hugging Face folder
    std::string gguf;    ///< its name in a GGUF file
    Role role = Role::vector;
    int64_t rows = 0, cols = 0;      ///< as the architecture has it: [out, in]
    bool transposed = false;         ///< the file holds [in, out]
    std::vector<int64_t> row_order;  ///< row i of the layer is row row_order[i] of a file of llama.cpp; empty: the same
};

/// What a layer is rounded to while loading: EncodeOptions, with a format that lives.
struct Rounding {
    std::string format;  ///< empty: the values of the file
    int block_size = 64;
    bool double_quant = true;
};

struct LoadOptions {
    std::string quantize;      ///< empty: the values of the file; else a format of storage/encode.h for the linear layers
    std::string output_layer;  ///< the same for the layer over the vocabulary, which `quantize` leaves alone
    /// In place of these for the layers named here as in Hugging Face files ("model.layers.0.mlp.up_proj", "lm_head").
    /// One that the model has not is an error, invalid_argument.
    std::map<std::string, Rounding> layers;
    /// Called with 0..1 from the loading thread; may throw to stop.
    std::function<void(double)> progress;
    /// Where not null, the model's tensors are listed here and its layers stay empty: nothing but vectors is read.
    std::vector<PlannedTensor>* plan = nullptr;
};

/// A tensor or layer under both of its names, without ".weight".
struct Name {
    std::string_view hf;
    std::string_view gguf;
};

/// transformers' default of tie_word_embeddings for an architecture, where config.json is silent.
enum class TiedByDefault { no, yes };

class Loader {
public:
    Loader(const Checkpoint& checkpoint, Device& device, const LoadOptions& options);

    const Config& config() const { return checkpoint_.config(); }

    /// Hugging Face files hold the base model inside a head ("model.layers...") or alone ("layers..."). Names below are
    /// given with the prefix and found without it too.
    void set_base_prefix(std::string_view prefix) { base_prefix_ = prefix; }
    /// Completes the names that follow: after at_layer(3, "model.layers.", "blk."), {"mlp.up_proj", "ffn_up"} means
    /// "model.layers.3.mlp.up_proj" or "blk.3.ffn_up". at_root() ends that.
    void at_layer(int64_t index, std::string_view hf, std::string_view gguf);
    void at_root();

    struct LinearOptions {
        bool bias_required = false;  ///< the config promises a bias; without this a bias is read where the file has one
        bool as_stored = false;      ///< `quantize=` leaves it alone
        bool conv1d = false;         ///< Hugging Face float weights are stored [in, out] (GPT-2's Conv1D)
        /// Row i of the layer is row row_of(i) of a file of llama.cpp (see reorder_rows); empty: as they are.
        std::function<int64_t(int64_t)> row_of = {};
    };
    int64_t rows(Name name) const;  ///< of "<name>.weight". Error not_found.
    /// Weight [out, in] and bias [out]. `quantize=` applies here. Errors: not_found, corrupt (wrong shape).
    Linear linear(Name name, int64_t in, int64_t out, const LinearOptions& options);
    Linear linear(Name name, int64_t in, int64_t out) { return linear(name, in, out, LinearOptions{}); }
    /// The first that a model asks for is the table of its tokens.
    Embedding embedding(Name name, int64_t count, int64_t dim);
    /// The layer over the vocabulary: the table of `embedding` where tied, else the file's own. False where there is none
    /// (a base model saved alone). Errors: not_found; unsupported where the config ties two tables that differ.
    bool output_layer(Name own, Name embedding, int64_t in, int64_t out, TiedByDefault tied, Linear& layer);
    /// The classification head `name` (out features as the file has them) and, unless `pooler` is empty, the layer that the
    /// first token of a sequence goes through on its way there; each is left without a weight where the file has none.
    void classification_head(Name name, Name pooler, int64_t hidden, Model& model);
    Norm rms_norm(Name name, int64_t dim, double eps);
    Norm layer_norm(Name name, int64_t dim, double eps);
    /// A vector of floats ("<name>.weight") in host memory; empty if absent.
    std::vector<float> vector(Name name, int64_t size);
    /// Tensors that carry nothing a forward pass needs (buffers of old checkpoints, heads that are not run). `pattern` may
    /// end or begin with '*'.
    void ignore(std::string_view pattern) { ignored_.emplace_back(pattern); }

    /// Throws unsupported, naming the first tensor or config field that nothing has read; moves what was collected into
    /// `model`.
    void finish(Model& model);

private:
    std::string canonical(Name name) const;                         ///< the full name in this format
    std::string find(Name name, std::string_view suffix) const;     ///< the tensor of the file, or "" if absent
    std::string require(Name name, std::string_view suffix) const;  ///< the same, or Error not_found
    void check_shape(const std::string& tensor, const Weight& weight, int64_t rows, int64_t cols) const;
    Weight read(const std::string& tensor);
    std::vector<float> read_vector(const std::string& tensor, int64_t size);
    Buffer to_device(const std::vector<float>& values);
    Module& add_module(Name name, Module::Kind kind, int64_t in, int64_t out);
    Norm norm(Name name, int64_t dim, double eps, bool has_beta);
    void report(const std::string& tensor, const Weight& weight);
    /// Adds to options_.plan, where there is one.
    void plan(const std::string& tensor, Name name, std::string_view suffix, PlannedTensor::Role role, int64_t rows,
              int64_t cols, bool transposed = false, std::vector<int64_t> row_order = {});
    /// That of options_.layers, or the format `otherwise`.
    Rounding rounding_of(Name name, const std::string& otherwise) const;
    Weight rounded(const std::string& tensor, const Weight& weight, const Rounding& rounding) const;

    const Checkpoint& checkpoint_;
    Device& device_;
    const LoadOptions& options_;
    std::string base_prefix_, hf_prefix_, gguf_prefix_;
    bool tied_output_ = false;
    std::set<std::string, std::less<>> read_;
    std::vector<std::string> ignored_;
    std::vector<Module> modules_;
    std::vector<Model::WeightReport> weights_;
};

/// Runs the loader of the checkpoint's architecture. Errors: unsupported, naming the architecture and those known.
std::unique_ptr<Model> load_model(const Checkpoint& checkpoint, Device& device, const LoadOptions& options);

}  // namespace halfbyte
