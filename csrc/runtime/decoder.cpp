#include "runtime/decoder.h"

#include <algorithm>

#include "core/error.h"

namespace halfbyte {

BatchDecoder::BatchDecoder(std::shared_ptr<const Engine> engine, int64_t sequences, int64_t capacity,
                           std::shared_ptr<const Adapter> adapter)
    : engine_(std::move(engine)), adapter_(std::move(adapter)), capacity_(capacity) {
    const ModelInfo& info = engine_->info();
    if (!info.causal || !info.has_logits)
        fail(ErrorCode::unsupported, "decoder: this ", info.architecture,
             " model writes no text: it is an encoder or has no output layer over the vocabulary");
    if (sequences < 1 || capacity < 1)
        fail(ErrorCode::invalid_argument, "decoder: sequences and capacity must be 1 or more, found ", sequences, " and ",
             capacity);
    if (info.max_positions > 0 && capacity > info.max_positions)
        fail(ErrorCode::invalid_argument, "decoder: a capacity of ", capacity, " tokens is more than the ",
             info.max_positions, " positions of this model");
    cache_ = std::make_unique<KvCache>(
        engine_->device(), KvFormat{engine_->cache_dtype(), info.layers, info.kv_heads, info.head_dim}, sequences, capacity);
    cached_.resize(size_t(sequences));
    logits_.resize(size_t(sequences * info.vocab_size));
}

BatchDecoder::~BatchDecoder() = default;

void BatchDecoder::truncate(int64_t tokens) {
    if (tokens < 0) fail(ErrorCode::invalid_argument, "decoder: cannot keep ", tokens, " tokens; expected 0 or more");
    for (int64_t& cached : cached_) cached = std::min(cached, tokens);
}

void BatchDecoder::extend(std::span<const int32_t> tokens, std::span<const int64_t> lengths) {
    const ModelInfo& info = engine_->info();
    if (lengths.size() != cached_.size())
        fail(ErrorCode::invalid_argument, "decoder: expected a length for each of ", cached_.size(), " sequences, found ",
             lengths.size());
    std::vector<Sequence> sequences;
    std::vector<int32_t> positions;
    int64_t rows = 0;
    for (size_t s = 0; s < lengths.size(); s++) {
        const int64_t length = lengths[s];
        if (length < 1 || length > int64_t(tokens.size()) - rows)
            fail(ErrorCode::invalid_argument, "decoder: sequence ", s, ": expected 1 or more tokens, of which ",
                 int64_t(tokens.size()) - rows, " are left, found a length of ", length);
        if (length > capacity_ - cached_[s])
            fail(ErrorCode::invalid_argument, "decoder: sequence ", s, " has ", cached_[s], " tokens of ", capacity_,
                 ", and ", length, " more do not fit: make the decoder with a larger capacity");
        sequences.push_back(
            {.first_row = rows, .rows = length, .first_key = int64_t(s) * cache_->capacity(), .keys = cached_[s] + length});
        for (int64_t i = 0; i < length; i++) positions.push_back(int32_t(cached_[s] + i));
        rows += length;
    }
    if (rows != int64_t(tokens.size()))
        fail(ErrorCode::invalid_argument, "decoder: the lengths sum to ", rows, ", but there are ", tokens.size(),
             " tokens");
    for (size_t i = 0; i < tokens.size(); i++)
        if (tokens[i] < 0 || tokens[i] >= info.vocab_size)
            fail(ErrorCode::invalid_argument, "decoder: token ", i, ": expected an id from 0 to ", info.vocab_size - 1,
                 " (the vocabulary of this model), found ", tokens[i]);

    const Adapter* adapter = adapter_.get();
    const Batch batch{.tokens = tokens,
                      .positions = positions,
                      .token_types = {},
                      .sequences = sequences,
                      .adapters = {&adapter, size_t(adapter == nullptr ? 0 : 1)},
                      .row_adapter = nullptr};
    const Engine::WorkspaceLease workspace(*engine_);
    const Workspace::Scope scope(*workspace);
    Device& device = engine_->device();
    const Context context{device, *workspace, batch, cache_.get()};
    Tensor hidden = engine_->model().forward(context);
    if (rows > int64_t(sequences.size())) {  // the last token of each is what the logits are wanted of
        const Tensor last = context.tensor(int64_t(sequences.size()), hidden.cols);
        device.pool(hidden, sequences, Pooling::last, false, last);
        hidden = last;
    }
    const Tensor logits = engine_->model().logits(context, hidden);
    for (int64_t s = 0; s < logits.rows; s++)
        device.copy_to_host(logits_.data() + s * logits.cols, logits.row(s), size_t(logits.cols) * sizeof(float));
    for (size_t s = 0; s < cached_.size(); s++) cached_[s] += lengths[s];
}

}  // namespace halfbyte
