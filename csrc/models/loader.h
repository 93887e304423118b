// Turns named tensors of a checkpoint into layers on a device, and keeps account: nothing in the file may be left unread.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/checkpoint.h"
#include "models/model.h"

namespace halfbyte {

struct LoadOptions {
    std::string quantize;  ///< empty: the values of the file; else a format of storage/encode.h for the linear layers
    /// Called with 0..1 from the loading thread; may throw to stop.
    std::function<void(double)> progress;
};

/// A tensor or layer under both of its names, without ".weight".
struct Name {
    std::string_view hf;
    std::string_view gguf;
};

class Loader {
public:
    Loader(const Checkpoint& checkpoint, Device& device, const LoadOptions& options);

    const Config& config() const { return checkpoint_.config(); }
    bool is_gguf() const { return config().is_gguf(); }
    Device& device() const { return device_; }

    /// Hugging Face files may hold the base model alone or inside a head ("model.layers..." or "layers...").
    /// Sets that prefix; names below are then given with it and found without it too.
    void set_base_prefix(std::string_view prefix) { base_prefix_ = prefix; }
    /// Names that follow are completed: layer(3, "model.layers.", "blk.") makes {"mlp.up_proj", "ffn_up"} mean
    /// "model.layers.3.mlp.up_proj" and "blk.3.ffn_up". at_root() ends that.
    void at_layer(int64_t index, std::string_view hf, std::string_view gguf);
    void at_root();

    struct LinearOptions {
        bool conv1d = false;             ///< Hugging Face float weights are stored [in, out] (GPT-2's Conv1D)
        const std::vector<int64_t>* row_order = nullptr;  ///< rows of the file in another order (see reorder_rows)
        bool quantizable = true;         ///< false: `quantize=` leaves it alone (output layers)
    };
    bool contains(Name name) const;  ///< "<name>.weight" is there
    /// Weight [out, in]; the bias is read where the file has one. Errors: not_found, corrupt (wrong shape).
    Linear linear(Name name, int64_t in, int64_t out, LinearOptions options);
    Linear linear(Name name, int64_t in, int64_t out) { return linear(name, in, out, LinearOptions{}); }
    Embedding embedding(Name name, int64_t count, int64_t dim);
    /// The table of `embedding` used as an output layer (tied).
    Linear tied(Name embedding, Name own, int64_t in, int64_t out);
    Norm rms_norm(Name name, int64_t dim, double eps);
    Norm layer_norm(Name name, int64_t dim, double eps);
    /// A vector of floats, e.g. GGUF "rope_freqs"; host memory; empty if absent.
    std::vector<float> vector(Name name, int64_t size);
    /// Tensors that carry nothing a forward pass needs (buffers of old checkpoints); `pattern` may end or begin with '*'.
    void ignore(std::string_view pattern);

    /// Throws unsupported, naming the first tensor that nothing has read, and moves what was collected into the model.
    void finish(Model& model);

private:
    std::string resolve(Name name, std::string_view suffix) const;  ///< the name in the file; where it has it
    std::string full(Name name) const;
    Weight read(const std::string& tensor);
    Weight quantized(const Weight& weight);
    Buffer floats(const std::string& tensor, int64_t size);
    int add_module(Name name, int64_t in, int64_t out);
    void report(const std::string& tensor, const Weight& weight);

    const Checkpoint& checkpoint_;
    Device& device_;
    const LoadOptions& options_;
    std::string base_prefix_, hf_prefix_, gguf_prefix_;
    std::set<std::string, std::less<>> read_;
    std::vector<std::string> ignored_;
    std::vector<Module> modules_;
    std::vector<Model::WeightReport> weights_;
};

/// Opens the architecture's own loader for a checkpoint. Errors: unsupported, naming the architecture and those known.
std::unique_ptr<Model> load_model(const Checkpoint& checkpoint, Device& device, const LoadOptions& options);

}  // namespace halfbyte
