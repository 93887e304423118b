// Token by token: prompt into the cache, logits of the last token, a sampled token, its text.
#include <algorithm>
#include <limits>

#include "core/error.h"
#include "runtime/engine.h"

namespace halfbyte {

namespace {

// Tokens of the prompt that one step() runs: enough for matrix products at full speed, few enough that a caller gets control
// back (Ctrl-C, a closed stream) within seconds on a model of billions of weights.
constexpr int64_t kPromptChunk = 256;
// Room for generated tokens that a cache starts with; it doubles when full, up to what the generation may need.
constexpr int64_t kFirstTokens = 256;

std::unique_ptr<KvCache> make_cache(const Engine& engine, const AdapterMix& mix, int64_t capacity) {
    const ModelInfo& info = engine.info();
    const int64_t layers = mix.layer_count(info.layers);
    return std::make_unique<KvCache>(engine.device(), KvFormat{engine.cache_dtype(), layers, info.kv_heads, info.head_dim},
                                     1, capacity);
}

}  // namespace

struct Generation::State {
    Sampler sampler;
    TextStream text;
    std::shared_ptr<const std::vector<std::string>> vocabulary;  // null: no text
    std::vector<int32_t> prompt;                                 // with the rows of an adapter in front of it
    int64_t prefix = 0;                                          // keys of an adapter in front of that
    int64_t active = 0;                                          // the adapter acts from this of `prompt` on
    int64_t most_keys = 0;                                       // tokens that the cache may have to hold
    int64_t cached = 0;                                          // tokens whose keys and values are there
    std::unique_ptr<KvCache> cache;
    std::vector<float> logits;  // [vocab]
};

Generation::Generation(std::shared_ptr<const Engine> engine, std::span<const int32_t> prompt, GenerateOptions options)
    : engine_(std::move(engine)), prompt_(prompt.begin(), prompt.end()), options_(std::move(options)) {
    const ModelInfo& info = engine_->info();
    if (!info.causal)
        fail(ErrorCode::unsupported, "generate: ", info.architecture,
             " is an encoder, which reads text and writes none: use its embeddings or hidden states");
    if (!info.has_logits)
        fail(ErrorCode::unsupported, "generate: this ", info.architecture,
             " checkpoint has no output layer over the vocabulary");
    if (prompt_.empty())
        fail(ErrorCode::invalid_argument,
             "generate: the prompt is empty; give at least one token, such as the beginning of sequence");
    const int64_t positions = info.max_positions > 0 ? info.max_positions : std::numeric_limits<int32_t>::max();
    const AdapterMix& mix = options_.adapter;
    const int64_t vocab_size = mix.vocab_size(info.vocab_size), virtual_tokens = mix.virtual_tokens();
    if (prompt_tokens() + virtual_tokens > positions)
        fail(ErrorCode::invalid_argument, "generate: the prompt has ", prompt_.size(), " tokens",
             virtual_tokens > 0 ? concat(" and the adapter ", virtual_tokens) : "", ", more than the ", positions,
             " positions of this model: shorten it");
    for (size_t i = 0; i < prompt_.size(); i++)
        if (prompt_[i] < 0 || prompt_[i] >= vocab_size)
            fail(ErrorCode::invalid_argument, "generate: token ", i, " of the prompt: expected an id from 0 to ",
                 vocab_size - 1, " (the vocabulary of this model), found ", prompt_[i]);
    if (options_.max_tokens < 1)
        fail(ErrorCode::invalid_argument, "generate: max_tokens must be 1 or more, found ", options_.max_tokens);

    state_ = std::make_unique<State>(State{.sampler = Sampler(options_.sampling),
                                           .text = TextStream(options_.stop),
                                           .vocabulary = engine_->vocabulary(),
                                           .prompt = {},
                                           .prefix = mix.prefix_tokens(),
                                           .active = mix.first_active(prompt_),
                                           .most_keys = positions,
                                           .cached = mix.prefix_tokens(),
                                           .cache = nullptr,
                                           .logits = std::vector<float>(size_t(mix.output_size(info.vocab_size)))});
    for (int64_t i = 0; i < mix.prompt_tokens(); i++) state_->prompt.push_back(int32_t(-1 - i));
    state_->prompt.insert(state_->prompt.end(), prompt_.begin(), prompt_.end());
    if (!options_.stop.empty() && state_->vocabulary == nullptr)
        fail(ErrorCode::invalid_argument, "generate: stop strings need the bytes of every token: set the vocabulary first");
    // The last token generated is never read back: it needs no place.
    const int64_t first_keys = prompt_tokens() + virtual_tokens;
    if (options_.max_tokens - 1 < positions - first_keys) state_->most_keys = first_keys + options_.max_tokens - 1;
    state_->cache = make_cache(*engine_, mix, std::min(state_->most_keys, first_keys + kFirstTokens));
    store_prefix(engine_->device(), mix, 0, *state_->cache);
    state_->sampler.observe_prompt(prompt_);
}

Generation::~Generation() = default;

bool Generation::step() {
    piece_.clear();
    if (!finish_reason_.empty()) return false;
    State& state = *state_;
    Device& device = engine_->device();

    // Tokens that are not in the cache yet: the next of the prompt, or the last one generated.
    const int64_t read = state.cached - state.prefix, to_read = int64_t(state.prompt.size());
    const bool reading = read < to_read;
    const int64_t rows = reading ? std::min(kPromptChunk, to_read - read) : 1;
    const std::span<const int32_t> tokens =
        reading ? std::span<const int32_t>(state.prompt).subspan(size_t(read), size_t(rows)) : std::span(tokens_).last(1);
    const int64_t keys = state.cached + rows;
    int32_t token = -1;
    if (keys > state.cache->capacity()) {
        std::unique_ptr<KvCache> larger =
            make_cache(*engine_, options_.adapter, std::min(state.most_keys, 2 * state.cache->capacity()));
        larger->copy_from(*state.cache, state.cached);
        state.cache = std::move(larger);
    }
    {
        std::vector<int32_t> positions;
        for (int64_t i = state.cached; i < keys; i++) positions.push_back(int32_t(i));
        const Sequence sequence{.first_row = 0, .rows = rows, .first_key = 0, .keys = keys};
        std::vector<const AdapterMix*> mixes(static_cast<size_t>(rows), &options_.adapter);
        for (int64_t i = 0; i < std::min(rows, state.active - read); i++) mixes[size_t(i)] = nullptr;
        // Where there are no invocation tokens in the prompt, an activated adapter sleeps to the end.
        if (state.active == to_read) mixes.assign(mixes.size(), nullptr);
        const AdapterBatch adapters(mixes), of_last(std::span<const AdapterMix* const>(mixes).last(1));
        const Batch batch{.tokens = tokens,
                          .positions = positions,
                          .token_types = {},
                          .sequences = {&sequence, 1},
                          .adapters = adapters.adapters(),
                          .adapter_rows = adapters.rows(),
                          .layers = options_.adapter.layers()};
        const Engine::WorkspaceLease workspace(*engine_);
        const Workspace::Scope scope(*workspace);
        const Context context{device, *workspace, batch, state.cache.get()};
        const Tensor hidden = engine_->model().forward(context);
        if (reading && rows < to_read - read) {
            state.cached = keys;
            return true;
        }
        Batch last = batch;
        last.adapters = of_last.adapters(), last.adapter_rows = of_last.rows();
        const Tensor logits =
            engine_->model().logits(Context{device, *workspace, last, nullptr}, hidden.row_range(rows - 1, 1));
        const bool on_device = device.can_sample() && state.sampler.takes_plain_logits();
        if (on_device) {
            const Draw draw = state.sampler.next_draw();
            device.sample(logits.columns(0, int64_t(state.logits.size())), {&draw, 1}, {&token, 1});
        }
        if (on_device && token >= 0) {
            state.sampler.remember(token);
        } else {  // also where the device found nothing to draw from: the sampler says what is wrong
            device.copy_to_host(state.logits.data(), logits.data, state.logits.size() * sizeof(float));
            token = state.sampler.sample(state.logits);
        }
    }
    state.cached = keys;

    if (std::find(options_.stop_tokens.begin(), options_.stop_tokens.end(), token) != options_.stop_tokens.end()) {
        finish_reason_ = "stop";
    } else {
        tokens_.push_back(token);
        if (state.vocabulary != nullptr && size_t(token) < state.vocabulary->size())
            piece_ = state.text.push((*state.vocabulary)[size_t(token)]);
        if (state.text.stopped())
            finish_reason_ = "stop";
        else if (keys == state.most_keys)
            finish_reason_ = "length";
    }
    if (!finish_reason_.empty()) {
        piece_ += state.text.finish();
        state.cache.reset();
    }
    return true;
}

}  // namespace halfbyte
