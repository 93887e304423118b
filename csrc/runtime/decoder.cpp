#include "runtime/decoder.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace halfbyte {

BatchDecoder::BatchDecoder(std::shared_ptr<const Engine> engine, int64_t sequences, int64_t capacity,
                           std::vector<AdapterMix> adapters)
    : engine_(std::move(engine)), mixes_(std::move(adapters)), capacity_(capacity) {
    const ModelInfo& info = engine_->info();
    if (!info.causal || !info.has_logits)
        fail(ErrorCode::unsupported, "decoder: this ", info.architecture,
             " model writes no text: it is an encoder or has no output layer over the vocabulary");
    if (sequences < 1 || capacity < 1)
        fail(ErrorCode::invalid_argument, "decoder: sequences and capacity must be 1 or more, found ", sequences, " and ",
             capacity);
    if (mixes_.size() > 1 && int64_t(mixes_.size()) != sequences)
        fail(ErrorCode::invalid_argument, "decoder: expected an adapter for each of ", sequences, " sequences, found ",
             mixes_.size());
    for (const AdapterMix& mix : mixes_)
        if (!same_layers(&mix, &mixes_[0]))
            fail(
                ErrorCode::invalid_argument,
                "decoder: the adapters run different layers of the model (layer_replication): ", "they need a decoder each");
    int64_t in_front = 0;
    vocab_size_ = mixes_.empty() ? info.vocab_size : 0;
    for (const AdapterMix& mix : mixes_) {
        in_front = std::max(in_front, mix.virtual_tokens());
        vocab_size_ = std::max(vocab_size_, mix.output_size(info.vocab_size));
    }
    if (info.max_positions > 0 && capacity + in_front > info.max_positions)
        fail(ErrorCode::invalid_argument, "decoder: a capacity of ", capacity, " tokens",
             in_front > 0 ? concat(" and ", in_front, " of an adapter") : "", " is more than the ", info.max_positions,
             " positions of this model");
    cache_ = std::make_unique<KvCache>(
        engine_->device(),
        KvFormat{engine_->cache_dtype(), mixes_.empty() ? info.layers : mixes_[0].layer_count(info.layers), info.kv_heads,
                 info.head_dim},
        sequences, capacity + in_front);
    slots_.resize(size_t(sequences));
    for (size_t s = 0; s < slots_.size(); s++) {
        if (mixes_.empty()) continue;
        slots_[s].mix = &mixes_[mixes_.size() == 1 ? 0 : s];
        slots_[s].active = slots_[s].mix->is_activated() ? -1 : 0;
        store_prefix(engine_->device(), *slots_[s].mix, int64_t(s) * cache_->capacity(), *cache_);
    }
    logits_.resize(size_t(sequences * vocab_size_));
}

BatchDecoder::~BatchDecoder() = default;

void BatchDecoder::truncate(int64_t tokens) {
    if (tokens < 0) fail(ErrorCode::invalid_argument, "decoder: cannot keep ", tokens, " tokens; expected 0 or more");
    for (Slot& slot : slots_) {
        slot.cached = std::min(slot.cached, tokens);
        if (slot.active > tokens) slot.active = -1;
    }
}

void BatchDecoder::extend(std::span<const int32_t> tokens, std::span<const int64_t> lengths) {
    const ModelInfo& info = engine_->info();
    if (lengths.size() != slots_.size())
        fail(ErrorCode::invalid_argument, "decoder: expected a length for each of ", slots_.size(), " sequences, found ",
             lengths.size());
    std::vector<Sequence> sequences;
    std::vector<int32_t> ids, positions;
    std::vector<const AdapterMix*> of_row, of_last;
    std::vector<int64_t> active;
    std::vector<size_t> running;  // the slots that `sequences` are of
    int64_t given = 0;
    for (size_t s = 0; s < lengths.size(); s++) {
        const Slot& slot = slots_[s];
        const int64_t length = lengths[s];
        active.push_back(slot.active);
        if (length == 0) continue;
        if (length < 0 || length > int64_t(tokens.size()) - given)
            fail(ErrorCode::invalid_argument, "decoder: sequence ", s, ": expected 0 or more tokens, of which ",
                 int64_t(tokens.size()) - given, " are left, found a length of ", length);
        if (length > capacity_ - slot.cached)
            fail(ErrorCode::invalid_argument, "decoder: sequence ", s, " has ", slot.cached, " tokens of ", capacity_,
                 ", and ", length, " more do not fit: make the decoder with a larger capacity");
        const auto mine = tokens.subspan(size_t(given), size_t(length));
        const int64_t vocab_size = slot.mix == nullptr ? info.vocab_size : slot.mix->vocab_size(info.vocab_size);
        for (int64_t i = 0; i < length; i++)
            if (mine[size_t(i)] < 0 || mine[size_t(i)] >= vocab_size)
                fail(ErrorCode::invalid_argument, "decoder: token ", given + i, ": expected an id from 0 to ",
                     vocab_size - 1, " (the vocabulary of this model), found ", mine[size_t(i)]);
        const int64_t prefix = slot.mix == nullptr ? 0 : slot.mix->prefix_tokens(),
                      prompt = slot.mix == nullptr ? 0 : slot.mix->prompt_tokens(),
                      new_rows = length + (slot.cached == 0 ? prompt : 0), keys = prefix + prompt + slot.cached + length;
        // The last occurrence of its invocation in what a sequence begins with activates an adapter, once.
        if (slot.mix != nullptr && slot.active < 0)
            if (const int64_t first = slot.mix->first_active(mine); first < length) active.back() = slot.cached + first;
        sequences.push_back({.first_row = int64_t(ids.size()),
                             .rows = new_rows,
                             .first_key = int64_t(s) * cache_->capacity(),
                             .keys = keys});
        for (int64_t i = length - new_rows; i < length; i++) {
            ids.push_back(i < 0 ? int32_t(-1 - (prompt + i)) : mine[size_t(i)]);
            positions.push_back(int32_t(keys - length + i));
            const bool acts = active.back() >= 0 && slot.cached + i >= active.back();
            of_row.push_back(i < 0 || acts ? slot.mix : nullptr);
        }
        of_last.push_back(of_row.back());
        running.push_back(s);
        given += length;
    }
    if (given != int64_t(tokens.size()))
        fail(ErrorCode::invalid_argument, "decoder: the lengths sum to ", given, ", but there are ", tokens.size(),
             " tokens");
    if (running.empty()) return;

    const AdapterBatch adapters(of_row), adapters_of_last(of_last);
    const Batch batch{.tokens = ids,
                      .positions = positions,
                      .token_types = {},
                      .sequences = sequences,
                      .adapters = adapters.adapters(),
                      .adapter_rows = adapters.rows(),
                      .layers = mixes_.empty() ? std::span<const int32_t>() : mixes_[0].layers()};
    const Engine::WorkspaceLease workspace(*engine_);
    const Workspace::Scope scope(*workspace);
    Device& device = engine_->device();
    const Context context{device, *workspace, batch, cache_.get()};
    Tensor hidden = engine_->model().forward(context);
    if (ids.size() > sequences.size()) {  // the last token of each is what the logits are wanted of
        const Tensor last = context.tensor(int64_t(sequences.size()), hidden.cols);
        device.pool(hidden, sequences, Pooling::last, false, last);
        hidden = last;
    }
    Batch last = batch;
    last.adapters = adapters_of_last.adapters(), last.adapter_rows = adapters_of_last.rows();
    const Tensor logits = engine_->model().logits(Context{device, *workspace, last, nullptr}, hidden);
    for (int64_t i = 0; i < logits.rows; i++) {
        const size_t s = running[size_t(i)];
        Slot& slot = slots_[s];
        float* const row = logits_.data() + int64_t(s) * vocab_size_;
        const int64_t own = slot.mix == nullptr ? info.vocab_size : slot.mix->output_size(info.vocab_size);
        device.copy_to_host(row, logits.row(i), size_t(own) * sizeof(float));
        std::fill(row + own, row + vocab_size_, -std::numeric_limits<float>::infinity());
        slot.cached += lengths[s];
        slot.active = active[s];
    }
}

}  // namespace halfbyte
