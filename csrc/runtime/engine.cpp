#include "runtime/engine.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "io/checkpoint.h"
#include "models/loader.h"
#include "runtime/peft.h"

namespace halfbyte {

namespace {

// Sequences are run together up to this many tokens: enough to keep every core busy, few enough for a small workspace.
constexpr int64_t kChunkTokens = 2048;
// Logits leave the device in pieces of at most this many numbers (64 MiB).
constexpr int64_t kLogitsChunk = int64_t(1) << 24;
// Scratch memory kept for the next calls, in all; what goes beyond is freed after use.
constexpr size_t kKeptBytes = size_t(256) << 20;
constexpr size_t kKeptWorkspaces = 16;

void copy_rows_to_host(Device& device, const Tensor& x, float* out) {
    const size_t row_bytes = size_t(x.cols) * sizeof(float);
    if (x.stride == x.cols) return device.copy_to_host(out, x.data, size_t(x.rows) * row_bytes);
    for (int64_t r = 0; r < x.rows; r++) device.copy_to_host(out + r * x.cols, x.row(r), row_bytes);
}

std::string list(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + concat('"', name, '"');
    return text.empty() ? "none" : text;
}

}  // namespace

Precision parse_precision(std::string_view name) {
    if (name == "high") return Precision::high;
    if (name == "fast") return Precision::fast;
    if (name == "float32") return Precision::float32;
    fail(ErrorCode::invalid_argument, "precision: expected \"high\", \"fast\" or \"float32\", found \"", name, '"');
}

std::string_view name_of(Precision precision) {
    switch (precision) {
        case Precision::high: return "high";
        case Precision::fast: return "fast";
        case Precision::float32: return "float32";
    }
    return "unknown";
}

DType parse_kv_cache(std::string_view name) {
    if (name == "f32") return DType::f32;
    if (name == "f16") return DType::f16;
    if (name == "bf16") return DType::bf16;
    if (name == "int8") return DType::i8;
    fail(ErrorCode::invalid_argument, "kv_cache: expected \"f16\", \"bf16\", \"f32\" or \"int8\", found \"", name, '"');
}

Pooling parse_pooling(std::string_view name) {
    if (name == "mean") return Pooling::mean;
    if (name == "cls") return Pooling::cls;
    if (name == "max") return Pooling::max;
    if (name == "last") return Pooling::last;
    fail(ErrorCode::invalid_argument, "pooling: expected \"mean\", \"cls\", \"max\" or \"last\", found \"", name, '"');
}

std::shared_ptr<Engine> Engine::load(const std::filesystem::path& path, const EngineOptions& options) {
    const auto start = std::chrono::steady_clock::now();
    if (options.threads < 0)
        fail(ErrorCode::invalid_argument, "threads: expected 0 (one per core) or more, found ", options.threads);
    const std::shared_ptr<Engine> engine(new Engine());
    engine->workspaces_.reserve(kKeptWorkspaces);  // giving one back never allocates
    engine->device_ = make_device(options.device, {options.threads, options.precision});
    engine->cache_dtype_ = options.kv_cache.value_or(engine->device_->cache_dtype());
    const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(path);
    engine->model_ = load_model(*checkpoint, *engine->device_,
                                {options.quantize, options.output_layer, options.layers, options.progress});
    engine->format_ = checkpoint->format();
    engine->path_ = path.string();
    engine->load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return engine;
}

// --- scratch memory -----------------------------------------------------------------------------------------------

Engine::WorkspaceLease::WorkspaceLease(const Engine& engine) : engine_(engine) {
    {
        const std::lock_guard lock(engine.mutex_);
        if (!engine.workspaces_.empty()) {
            workspace_ = std::move(engine.workspaces_.back());
            engine.workspaces_.pop_back();
        }
    }
    if (!workspace_) workspace_ = std::make_unique<Workspace>(engine.device());
}

Engine::WorkspaceLease::~WorkspaceLease() {
    const std::lock_guard lock(engine_.mutex_);
    size_t kept = workspace_->bytes();
    for (const auto& other : engine_.workspaces_) kept += other->bytes();
    if (kept <= kKeptBytes && engine_.workspaces_.size() < kKeptWorkspaces)
        engine_.workspaces_.push_back(std::move(workspace_));
}

// --- batches ------------------------------------------------------------------------------------------------------

void Engine::check(const TokenBatch& batch) const {
    const ModelInfo& model = info();
    const size_t total = batch.tokens.size();
    if (!batch.positions.empty() && batch.positions.size() != total)
        fail(ErrorCode::invalid_argument, "positions: expected one for each of ", total, " tokens, found ",
             batch.positions.size());
    if (!batch.token_types.empty() && batch.token_types.size() != total)
        fail(ErrorCode::invalid_argument, "token types: expected one for each of ", total, " tokens, found ",
             batch.token_types.size());
    size_t row = 0;
    for (size_t s = 0; s < batch.lengths.size(); s++) {
        const int64_t length = batch.lengths[s];
        if (length < 0 || uint64_t(length) > total - row)
            fail(ErrorCode::invalid_argument, "lengths: sequence ", s, " is said to have ", length, " tokens, and ",
                 total - row, " of ", total, " are left");
        if (model.max_positions > 0 && batch.positions.empty() && length > model.max_positions)
            fail(ErrorCode::invalid_argument, "sequence ", s, " has ", length, " tokens, more than the ",
                 model.max_positions, " positions of this model: shorten it or split it");
        for (int64_t i = 0; i < length; i++, row++) {
            if (batch.tokens[row] < 0 || batch.tokens[row] >= model.vocab_size)
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, ": expected an id from 0 to ",
                     model.vocab_size - 1, " (the vocabulary of this model), found ", batch.tokens[row]);
            if (!batch.positions.empty() &&
                (batch.positions[row] < 0 || (model.max_positions > 0 && batch.positions[row] >= model.max_positions)))
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, ": expected a position from 0 to ",
                     model.max_positions - 1, ", found ", batch.positions[row]);
            if (batch.token_types.empty()) continue;
            const int32_t type = batch.token_types[row];
            if (model.token_types == 0 && type != 0)
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, " has token type ", type,
                     "; this model takes none: leave token types out");
            if (model.token_types > 0 && (type < 0 || type >= model.token_types))
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, ": expected a token type from 0 to ",
                     model.token_types - 1, ", found ", type);
        }
    }
    if (row != total)
        fail(ErrorCode::invalid_argument, "lengths: expected them to sum to the ", total, " tokens given, found a sum of ",
             row);
}

void Engine::run(const TokenBatch& batch, const Adapter* adapter, FunctionRef<void(const Chunk&)> consume) const {
    check(batch);
    const std::span<const Adapter* const> adapters(&adapter, adapter == nullptr ? 0 : 1);
    const bool has_types = info().token_types > 0 && !batch.token_types.empty();
    const WorkspaceLease workspace(*this);
    std::vector<int32_t> positions;
    std::vector<Sequence> sequences;

    int64_t first_row = 0;
    for (size_t s = 0; s < batch.lengths.size();) {
        const size_t first_sequence = s;
        int64_t rows = 0;
        positions.clear();
        sequences.clear();
        for (; s < batch.lengths.size() && (rows == 0 || rows + batch.lengths[s] <= kChunkTokens); s++) {
            const int64_t length = batch.lengths[s];
            if (length == 0) continue;
            sequences.push_back({.first_row = rows, .rows = length, .first_key = rows, .keys = length});
            if (batch.positions.empty())
                for (int64_t i = 0; i < length; i++) positions.push_back(int32_t(i));
            rows += length;
        }
        if (rows == 0) continue;
        const auto part = [&](std::span<const int32_t> all) { return all.subspan(size_t(first_row), size_t(rows)); };
        const Batch packed{
            .tokens = part(batch.tokens),
            .positions = batch.positions.empty() ? std::span<const int32_t>(positions) : part(batch.positions),
            .token_types = has_types ? part(batch.token_types) : std::span<const int32_t>(),
            .sequences = sequences,
            .adapters = adapters,
            .row_adapter = nullptr};
        const Workspace::Scope scope(*workspace);
        const Context context{*device_, *workspace, packed, nullptr};
        consume({context, model_->forward(context), sequences, first_row, int64_t(first_sequence)});
        first_row += rows;
    }
}

void Engine::logits(const TokenBatch& batch, const Adapter* adapter, float* out) const {
    if (!info().has_logits)
        fail(ErrorCode::invalid_argument, "logits: this ", info().architecture,
             " checkpoint has no output layer over the vocabulary");
    const int64_t vocab = info().vocab_size;
    const int64_t step = std::max<int64_t>(1, kLogitsChunk / vocab);
    run(batch, adapter, [&](const Chunk& chunk) {
        for (int64_t row = 0; row < chunk.hidden.rows; row += step) {
            const int64_t rows = std::min(step, chunk.hidden.rows - row);
            const Workspace::Scope scope(chunk.context.workspace);
            const Tensor logits = model_->logits(chunk.context, chunk.hidden.row_range(row, rows));
            copy_rows_to_host(*device_, logits, out + (chunk.first_row + row) * vocab);
        }
    });
}

void Engine::hidden_states(const TokenBatch& batch, const Adapter* adapter, float* out) const {
    run(batch, adapter,
        [&](const Chunk& chunk) { copy_rows_to_host(*device_, chunk.hidden, out + chunk.first_row * info().hidden_size); });
}

void Engine::embed(const TokenBatch& batch, const Adapter* adapter, Pooling pooling, bool normalize, float* out) const {
    for (size_t s = 0; s < batch.lengths.size(); s++)
        if (batch.lengths[s] == 0)
            fail(ErrorCode::invalid_argument, "embed: sequence ", s, " is empty: there is nothing to pool");
    run(batch, adapter, [&](const Chunk& chunk) {
        const int64_t hidden = info().hidden_size;
        const Tensor pooled = chunk.context.tensor(int64_t(chunk.sequences.size()), hidden);
        device_->pool(chunk.hidden, chunk.sequences, pooling, normalize, pooled);
        copy_rows_to_host(*device_, pooled, out + chunk.first_sequence * hidden);
    });
}

// --- adapters and the vocabulary ----------------------------------------------------------------------------------

void Engine::load_adapter(const std::filesystem::path& path, const std::string& name) {
    if (name.empty()) fail(ErrorCode::invalid_argument, "load_adapter: the name is empty; give the adapter one");
    std::shared_ptr<const Adapter> adapter = read_peft_adapter(path, name, *model_, *device_);
    const std::lock_guard lock(mutex_);
    adapters_[name].swap(adapter);  // one that is replaced is freed after the lock
}

void Engine::unload_adapter(const std::string& name) {
    const std::shared_ptr<const Adapter> last = adapter(name);
    const std::lock_guard lock(mutex_);
    adapters_.erase(name);
}

std::shared_ptr<const Adapter> Engine::adapter(const std::string& name) const {
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = adapters_.find(name); found != adapters_.end()) return found->second;
    }
    fail(ErrorCode::not_found, "there is no adapter \"", name, "\"; loaded: ", list(adapter_names()));
}

std::vector<std::string> Engine::adapter_names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    return names;
}

void Engine::set_vocabulary(std::vector<std::string> pieces) {
    auto vocabulary = std::make_shared<const std::vector<std::string>>(std::move(pieces));
    const std::lock_guard lock(mutex_);
    vocabulary_.swap(vocabulary);
}

std::shared_ptr<const std::vector<std::string>> Engine::vocabulary() const {
    const std::lock_guard lock(mutex_);
    return vocabulary_;
}

}  // namespace halfbyte
