#include "runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "core/error.h"
#include "io/checkpoint.h"
#include "models/loader.h"
#include "runtime/gguf_adapter.h"
#include "runtime/peft.h"

namespace halfbyte {

namespace {

// Sequences are run together up to so many tokens. On the host so many for each thread: enough that each has rows of its own, few
// enough that what one layer writes is in the cache when the next one reads it.
constexpr int64_t kDeviceTokens = 2048, kThreadTokens = 512, kLeastTokens = 1024, kMostTokens = 4096;
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
    engine->device_ = make_device(options.device, {options.threads, options.precision, options.device_memory});
    engine->cache_dtype_ = options.kv_cache.value_or(engine->device_->cache_dtype());
    const std::unique_ptr<Checkpoint> checkpoint = Checkpoint::open(path);
    engine->model_ = load_model(*checkpoint, *engine->device_,
                                {options.quantize, options.output_layer, options.layers, options.progress});
    engine->adapters_ = std::make_unique<AdapterRegistry>([model = engine->model_.get(), device = engine->device_](
                                                              const std::filesystem::path& file, const std::string& name) {
        return file.extension() == ".gguf" ? read_gguf_adapter(file, name, *model, *device)
                                           : read_peft_adapter(file, name, *model, *device);
    });
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
    if (batch.adapters.size() > 1 && batch.adapters.size() != batch.lengths.size())
        fail(ErrorCode::invalid_argument, "adapters: expected one for each of ", batch.lengths.size(), " sequences, found ",
             batch.adapters.size());
    size_t row = 0;
    for (size_t s = 0; s < batch.lengths.size(); s++) {
        const int64_t length = batch.lengths[s];
        const AdapterMix* mix = batch.adapter(s);
        const int64_t virtual_tokens = mix == nullptr ? 0 : mix->virtual_tokens();
        const int64_t vocab_size = mix == nullptr ? model.vocab_size : mix->vocab_size(model.vocab_size);
        if (length < 0 || uint64_t(length) > total - row)
            fail(ErrorCode::invalid_argument, "lengths: sequence ", s, " is said to have ", length, " tokens, and ",
                 total - row, " of ", total, " are left");
        if (model.max_positions > 0 && batch.positions.empty() && length > 0 &&
            length + virtual_tokens > model.max_positions)
            fail(ErrorCode::invalid_argument, "sequence ", s, " has ", length, " tokens",
                 virtual_tokens > 0 ? concat(" and its adapter ", virtual_tokens) : "", ", more than the ",
                 model.max_positions, " positions of this model: shorten it or split it");
        for (int64_t i = 0; i < length; i++, row++) {
            if (batch.tokens[row] < 0 || batch.tokens[row] >= vocab_size)
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, ": expected an id from 0 to ",
                     vocab_size - 1, " (the vocabulary of this model), found ", batch.tokens[row]);
            if (!batch.positions.empty() &&
                (batch.positions[row] < 0 ||
                 (model.max_positions > 0 && batch.positions[row] >= model.max_positions - virtual_tokens)))
                fail(ErrorCode::invalid_argument, "token ", i, " of sequence ", s, ": expected a position from 0 to ",
                     model.max_positions - virtual_tokens - 1, ", found ", batch.positions[row]);
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

void Engine::run(const TokenBatch& batch, FunctionRef<void(const Chunk&)> consume) const {
    check(batch);
    const bool has_types = info().token_types > 0 && !batch.token_types.empty();
    const WorkspaceLease workspace(*this);
    const int64_t of_threads = kThreadTokens * device_->host_pool().threads();
    const int64_t most_rows = device_->memory_is_host() ? std::clamp(of_threads, kLeastTokens, kMostTokens) : kDeviceTokens;
    // Of a chunk, rows that adapters put in front of a sequence included:
    std::vector<int32_t> tokens, positions, types, row_of;
    std::vector<const AdapterMix*> mix_of;
    std::vector<Sequence> sequences;

    int64_t first_row = 0;
    for (size_t s = 0; s < batch.lengths.size();) {
        const size_t first_sequence = s;
        int64_t rows = 0, real = 0, most_keys = 0;
        bool has_prefix = false;
        for (std::vector<int32_t>* each : {&tokens, &positions, &types, &row_of}) each->clear();
        mix_of.clear(), sequences.clear();
        std::vector<const AdapterMix*> mixes;  // of `sequences`
        for (; s < batch.lengths.size() && (rows == 0 || rows + batch.lengths[s] <= most_rows); s++) {
            const int64_t length = batch.lengths[s];
            if (length == 0) continue;
            const AdapterMix* mix = batch.adapter(s);
            if (!mixes.empty() && !same_layers(mix, mixes[0])) break;  // of the next chunk
            const int64_t prompt = mix == nullptr ? 0 : mix->prompt_tokens(),
                          prefix = mix == nullptr ? 0 : mix->prefix_tokens();
            has_prefix = has_prefix || prefix > 0;
            const std::span<const int32_t> ids = batch.tokens.subspan(size_t(first_row + real), size_t(length));
            const int64_t active = mix == nullptr ? 0 : mix->first_active(ids);
            for (int64_t i = -prompt; i < length; i++) {
                const auto row = size_t(first_row + real + i);
                tokens.push_back(i < 0 ? int32_t(-1 - (prompt + i)) : batch.tokens[row]);
                const int64_t position = i < 0 || batch.positions.empty() ? i : batch.positions[row];
                positions.push_back(int32_t(position + prompt + prefix));
                if (has_types) types.push_back(i < 0 ? 0 : batch.token_types[row]);
                mix_of.push_back(i < 0 || i >= active ? mix : nullptr);
                row_of.push_back(i < 0 ? -1 : int32_t(row));
            }
            sequences.push_back(
                {.first_row = rows, .rows = prompt + length, .first_key = rows, .keys = prefix + prompt + length});
            most_keys = std::max(most_keys, sequences.back().keys);
            mixes.push_back(mix);
            rows += prompt + length, real += length;
        }
        if (rows == 0) continue;
        // Keys and values that nobody computes come first in a cache.
        std::unique_ptr<KvCache> cache;
        if (has_prefix) {
            cache =
                std::make_unique<KvCache>(*device_, KvFormat{DType::f32, info().layers, info().kv_heads, info().head_dim},
                                          int64_t(sequences.size()), most_keys);
            for (size_t i = 0; i < sequences.size(); i++) {
                sequences[i].first_key = int64_t(i) * cache->capacity();
                if (mixes[i] != nullptr) store_prefix(*device_, *mixes[i], sequences[i].first_key, *cache);
            }
        }
        const AdapterBatch adapters(mix_of);
        const Batch packed{.tokens = tokens,
                           .positions = positions,
                           .token_types = types,
                           .sequences = sequences,
                           .adapters = adapters.adapters(),
                           .adapter_rows = adapters.rows(),
                           .layers = mixes[0] == nullptr ? std::span<const int32_t>() : mixes[0]->layers()};
        const Workspace::Scope scope(*workspace);
        const Context context{*device_, *workspace, packed, cache.get()};
        consume({*device_, *workspace, model_->forward(context), sequences, mix_of, row_of, first_row,
                 int64_t(first_sequence), real, rows > real});
        first_row += real;
    }
}

void Engine::for_real_rows(const Chunk& chunk, int64_t most,
                           FunctionRef<void(const Context&, const Tensor&, int64_t)> f) const {
    std::vector<int32_t> rows;  // of hidden
    for (size_t r = 0; r < chunk.row.size(); r++)
        if (chunk.row[r] >= 0) rows.push_back(int32_t(r));
    for (size_t first = 0; first < rows.size();) {
        const size_t count = std::min(size_t(most), rows.size() - first);
        const Workspace::Scope scope(chunk.workspace);
        std::vector<const AdapterMix*> mixes;
        for (size_t i = 0; i < count; i++) mixes.push_back(chunk.of_row[size_t(rows[first + i])]);
        const AdapterBatch adapters(mixes);
        const Batch batch{.tokens = {},
                          .positions = {},
                          .token_types = {},
                          .sequences = {},
                          .adapters = adapters.adapters(),
                          .adapter_rows = adapters.rows()};
        const Context context{chunk.device, chunk.workspace, batch, nullptr};
        Tensor hidden = chunk.hidden.row_range(int64_t(first), int64_t(count));
        if (chunk.has_virtual) {
            hidden = context.tensor(int64_t(count), chunk.hidden.cols);
            device_->gather_rows(chunk.hidden, std::span(rows).subspan(first, count), hidden);
        }
        f(context, hidden, chunk.first_row + int64_t(first));
        first += count;
    }
}

int64_t Engine::logits_size(const TokenBatch& batch) const {
    int64_t size = batch.adapters.empty() ? info().vocab_size : 0;
    for (const AdapterMix& mix : batch.adapters) size = std::max(size, mix.output_size(info().vocab_size));
    return size;
}

void Engine::logits(const TokenBatch& batch, float* out) const {
    if (!info().has_logits)
        fail(ErrorCode::invalid_argument, "logits: this ", info().architecture,
             " checkpoint has no output layer over the vocabulary");
    const int64_t size = logits_size(batch);
    run(batch, [&](const Chunk& chunk) {
        for_real_rows(chunk, std::max<int64_t>(1, kLogitsChunk / size),
                      [&](const Context& context, const Tensor& hidden, int64_t first) {
                          const Tensor logits = model_->logits(context, hidden);
                          float* const to = out + first * size;
                          if (logits.cols == size) return copy_rows_to_host(*device_, logits, to);
                          std::fill_n(to, hidden.rows * size, -std::numeric_limits<float>::infinity());
                          for (int64_t r = 0; r < hidden.rows; r++)
                              device_->copy_to_host(to + r * size, logits.row(r), size_t(logits.cols) * sizeof(float));
                      });
    });
    if (batch.adapters.size() < 2) return;
    int64_t row = 0;  // a row of a smaller vocabulary beside one of a larger
    for (size_t s = 0; s < batch.lengths.size(); s++) {
        const int64_t own = batch.adapters[s].output_size(info().vocab_size);
        for (int64_t i = 0; i < batch.lengths[s]; i++, row++)
            std::fill(out + row * size + own, out + (row + 1) * size, -std::numeric_limits<float>::infinity());
    }
}

void Engine::hidden_states(const TokenBatch& batch, float* out) const {
    run(batch, [&](const Chunk& chunk) {
        for_real_rows(chunk, chunk.rows, [&](const Context&, const Tensor& hidden, int64_t first) {
            copy_rows_to_host(*device_, hidden, out + first * info().hidden_size);
        });
    });
}

void Engine::embed(const TokenBatch& batch, Pooling pooling, bool normalize, float* out) const {
    for (size_t s = 0; s < batch.lengths.size(); s++)
        if (batch.lengths[s] == 0)
            fail(ErrorCode::invalid_argument, "embed: sequence ", s, " is empty: there is nothing to pool");
    run(batch, [&](const Chunk& chunk) {
        const int64_t hidden = info().hidden_size;
        std::vector<Sequence> real(chunk.sequences.begin(), chunk.sequences.end());  // without rows of adapters
        for (Sequence& sequence : real)
            for (; chunk.row[size_t(sequence.first_row)] < 0; sequence.rows--) sequence.first_row++;
        const Workspace::Scope scope(chunk.workspace);
        const Tensor pooled = chunk.workspace.tensor(int64_t(real.size()), hidden);
        device_->pool(chunk.hidden, real, pooling, normalize, pooled);
        copy_rows_to_host(*device_, pooled, out + chunk.first_sequence * hidden);
    });
}

int64_t Engine::labels(const TokenBatch& batch) const {
    int64_t labels = batch.adapters.empty() ? info().labels : -1;
    for (const AdapterMix& mix : batch.adapters) {
        const int64_t own = mix.labels(info().labels);
        if (labels >= 0 && own != labels)
            fail(ErrorCode::invalid_argument, "classify: one sequence has ", labels, " labels and another ", own,
                 ": classify them in two calls");
        labels = own;
    }
    if (labels == 0)
        fail(ErrorCode::not_found, "classify: this ", info().architecture,
             " checkpoint has no classification head, and none of the adapters brings one");
    return labels;
}

void Engine::classify(const TokenBatch& batch, bool per_token, float* out) const {
    const int64_t size = labels(batch);
    const bool first_token = !info().causal;
    if (per_token)
        return run(batch, [&](const Chunk& chunk) {
            for_real_rows(chunk, chunk.rows, [&](const Context& context, const Tensor& hidden, int64_t first) {
                copy_rows_to_host(*device_, model_->classify(context, hidden, true), out + first * size);
            });
        });
    for (size_t s = 0; s < batch.lengths.size(); s++)
        if (batch.lengths[s] == 0)
            fail(ErrorCode::invalid_argument, "classify: sequence ", s, " is empty: there is nothing to classify");
    run(batch, [&](const Chunk& chunk) {
        std::vector<int32_t> rows;
        std::vector<const AdapterMix*> mixes;
        for (const Sequence& sequence : chunk.sequences) {
            rows.push_back(int32_t(sequence.first_row + (first_token ? 0 : sequence.rows - 1)));
            mixes.push_back(chunk.of_row[size_t(rows.back())]);
        }
        const Workspace::Scope scope(chunk.workspace);
        const AdapterBatch adapters(mixes);
        const Batch heads{.tokens = {},
                          .positions = {},
                          .token_types = {},
                          .sequences = {},
                          .adapters = adapters.adapters(),
                          .adapter_rows = adapters.rows()};
        const Context context{chunk.device, chunk.workspace, heads, nullptr};
        const Tensor hidden = context.tensor(int64_t(rows.size()), chunk.hidden.cols);
        device_->gather_rows(chunk.hidden, rows, hidden);
        copy_rows_to_host(*device_, model_->classify(context, hidden, false), out + chunk.first_sequence * size);
    });
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
