// A model ready to run: what Python and the C ABI stand on. Never names an architecture.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/thread_pool.h"
#include "device/device.h"
#include "models/loader.h"
#include "models/model.h"
#include "runtime/adapter_mix.h"
#include "runtime/adapter_registry.h"
#include "runtime/sampler.h"
#include "runtime/text.h"

namespace halfbyte {

/// "high", "fast", "float32". Error invalid_argument, naming these.
Precision parse_precision(std::string_view name);
std::string_view name_of(Precision precision);
/// "f32", "f16", "bf16", "int8": what a KV cache holds. Error invalid_argument, naming these.
DType parse_kv_cache(std::string_view name);
/// "mean", "cls", "max", "last". Error invalid_argument, naming these.
Pooling parse_pooling(std::string_view name);

struct EngineOptions {
    std::string device = "auto";  ///< see make_device()
    int threads = 0;              ///< 0: one per available core
    Precision precision = Precision::high;
    std::string quantize;           ///< empty: the file's own values; "nf4", "fp4", "int8", "bf16", "f16"
    std::string output_layer = {};  ///< the same for the layer over the vocabulary, which `quantize` leaves alone
    std::map<std::string, Rounding> layers = {};  ///< in place of both for these layers: see LoadOptions
    std::function<void(double)> progress = {};
    /// Elements of the KV cache; empty: the device's choice (f16; f32 in precision float32).
    std::optional<DType> kv_cache = {};
    size_t device_memory = 0;  ///< DeviceOptions::memory_limit
};

/// Sequences packed one behind the other; host memory.
struct TokenBatch {
    std::span<const int32_t> tokens;       ///< [total]
    std::span<const int64_t> lengths;      ///< one per sequence, each >= 0, summing to total
    std::span<const int32_t> positions;    ///< [total] or empty: 0, 1, 2, ... in each sequence
    std::span<const int32_t> token_types;  ///< [total] or empty: 0
    /// Empty: none; one: for all sequences; else one for each sequence.
    std::span<const AdapterMix> adapters = {};

    const AdapterMix* adapter(size_t sequence) const {
        return adapters.empty() ? nullptr : &adapters[adapters.size() == 1 ? 0 : sequence];
    }
};

struct GenerateOptions {
    int64_t max_tokens = 256;  ///< stops with "length" here, or where the context is full
    SamplingOptions sampling;
    std::vector<std::string> stop;     ///< needs a vocabulary (Engine::set_vocabulary)
    std::vector<int32_t> stop_tokens;  ///< end-of-sequence ids; not part of the output
    AdapterMix adapter;
};

class Engine;

/// One running generation: a cache, a sampler, a text stream. Not shared between threads; dropping it abandons the work.
class Generation {
public:
    /// Errors: invalid_argument (an option, an empty prompt, one longer than the context), unsupported (an encoder).
    Generation(std::shared_ptr<const Engine> engine, std::span<const int32_t> prompt, GenerateOptions options);
    ~Generation();

    /// Does a bounded piece of work: a chunk of the prompt or one token. False where it had finished before: nothing was
    /// done. After an error it may be called again. Errors: corrupt (logits that are not numbers), out_of_memory.
    bool step();
    /// Text made certain by the last step (UTF-8; may be empty; empty without a vocabulary).
    const std::string& piece() const { return piece_; }
    const std::vector<int32_t>& tokens() const { return tokens_; }  ///< generated so far
    /// "" while running; "stop" (end-of-sequence token or stop string) or "length".
    const std::string& finish_reason() const { return finish_reason_; }
    int64_t prompt_tokens() const { return int64_t(prompt_.size()); }

private:
    struct State;
    std::shared_ptr<const Engine> engine_;
    std::vector<int32_t> prompt_, tokens_;
    GenerateOptions options_;
    std::string piece_, finish_reason_;
    std::unique_ptr<State> state_;
};

/// Safe from many threads at once. Generations and calls in flight keep what they use alive.
class Engine : public std::enable_shared_from_this<Engine> {
public:
    /// Errors: those of Checkpoint::open, load_model, make_device, encode.
    static std::shared_ptr<Engine> load(const std::filesystem::path& path, const EngineOptions& options);

    const ModelInfo& info() const { return model_->info(); }
    const Model& model() const { return *model_; }
    Device& device() const { return *device_; }
    const std::string& format() const { return format_; }  ///< "gguf", "safetensors", "bitsandbytes"
    const std::string& path() const { return path_; }
    double load_seconds() const { return load_seconds_; }
    DType cache_dtype() const { return cache_dtype_; }  ///< of the KV caches of generations

    // Rows of `out` are the tokens given; those that an adapter puts in front of them are left out.
    /// Columns of the logits of a batch: the vocabulary, or that of the adapter that has the largest.
    int64_t logits_size(const TokenBatch& batch) const;
    /// out: [total, logits_size()]; -infinity in columns that the adapter of a row does not have. Errors: invalid_argument (a
    /// token id out of range, too many positions, no output layer).
    void logits(const TokenBatch& batch, float* out) const;
    /// out: [total, hidden], after the final norm.
    void hidden_states(const TokenBatch& batch, float* out) const;
    /// out: [sequences, hidden]. Errors: invalid_argument for an empty sequence, too.
    void embed(const TokenBatch& batch, Pooling pooling, bool normalize, float* out) const;
    /// Labels of the classification head of the model or of the adapters of a batch. Errors: not_found where there is none;
    /// invalid_argument where the sequences of the batch have heads of different sizes.
    int64_t labels(const TokenBatch& batch) const;
    /// out: [sequences, labels()] or, per_token, [total, labels()]: the scores before any softmax.
    void classify(const TokenBatch& batch, bool per_token, float* out) const;

    /// The adapters by their names. They outlive what uses them.
    AdapterRegistry& adapters() const { return *adapters_; }

    /// Bytes of every token id ("" for those that show nothing), for text and stop strings.
    void set_vocabulary(std::vector<std::string> pieces);
    std::shared_ptr<const std::vector<std::string>> vocabulary() const;

    /// Scratch memory lent for one piece of work; it goes back to the engine, so that the next call allocates nothing.
    class WorkspaceLease {
    public:
        explicit WorkspaceLease(const Engine& engine);
        ~WorkspaceLease();
        WorkspaceLease(const WorkspaceLease&) = delete;
        WorkspaceLease& operator=(const WorkspaceLease&) = delete;
        Workspace& operator*() const { return *workspace_; }

    private:
        const Engine& engine_;
        std::unique_ptr<Workspace> workspace_;
    };

private:
    /// Sequences of the batch that were run together: rows of `hidden` are rows first_row .. of the batch.
    struct Chunk {
        Device& device;
        Workspace& workspace;
        Tensor hidden;                              // [rows of the sequences, hidden]
        std::span<const Sequence> sequences;        // without the empty ones
        std::span<const AdapterMix* const> of_row;  // [rows of hidden]
        std::span<const int32_t> row;               // [rows of hidden], of the batch; below 0: of an adapter
        int64_t first_row, first_sequence, rows;    // of the batch: rows `first_row` .. + `rows`
        bool has_virtual;                           // there is a row of an adapter
    };
    /// f(rows of hidden, context for them, first of them) for those that are the batch's own, at most `most` at a time.
    void for_real_rows(const Chunk& chunk, int64_t most, FunctionRef<void(const Context&, const Tensor&, int64_t)> f) const;
    Engine() = default;
    void check(const TokenBatch& batch) const;
    /// Runs the whole batch, as many sequences at a time as memory should be spent on.
    void run(const TokenBatch& batch, FunctionRef<void(const Chunk&)> consume) const;

    std::string format_, path_;
    double load_seconds_ = 0;
    DType cache_dtype_ = DType::f16;
    std::shared_ptr<Device> device_;
    std::unique_ptr<Model> model_;
    std::unique_ptr<AdapterRegistry> adapters_;
    mutable std::mutex mutex_;  // guards the two below
    std::shared_ptr<const std::vector<std::string>> vocabulary_;
    mutable std::vector<std::unique_ptr<Workspace>> workspaces_;  // not lent at the moment
};

}  // namespace halfbyte
