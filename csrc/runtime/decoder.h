// Several sequences decoded side by side: one pass over the weights serves a token of each.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/engine.h"

namespace halfbyte {

/// A cache of `sequences` slots and the logits behind the last token of each. The caller picks the tokens: sampling and text
/// are not its business. Not shared between threads.
class BatchDecoder {
public:
    /// `capacity`: tokens that each sequence may grow to, without those that an adapter puts in front. `adapters`: none, one for
    /// all sequences, or one for each.
    /// Errors: unsupported (an encoder, no output layer), invalid_argument (a count below 1, more tokens than the model has
    /// positions), out_of_memory.
    BatchDecoder(std::shared_ptr<const Engine> engine, int64_t sequences, int64_t capacity,
                 std::vector<AdapterMix> adapters);
    ~BatchDecoder();

    /// Appends lengths[s] tokens to every sequence s; `tokens` holds them one sequence behind the other. A sequence that gets none
    /// costs nothing, and its logits stay as they are. After an error nothing was appended. Errors: invalid_argument (lengths that do not fit, an id out of range, a full cache).
    void extend(std::span<const int32_t> tokens, std::span<const int64_t> lengths);

    /// Forgets all but the first `tokens` of every sequence; the logits stay as they are. Error invalid_argument below 0.
    void truncate(int64_t tokens);

    /// [sequences, vocab_size()]; zeros before the first extend(); -infinity in columns that the adapter of a sequence lacks.
    std::span<const float> logits() const { return logits_; }
    int64_t sequences() const { return int64_t(slots_.size()); }
    int64_t vocab_size() const { return vocab_size_; }  ///< the largest of any sequence

private:
    std::shared_ptr<const Engine> engine_;
    struct Slot {
        const AdapterMix* mix = nullptr;  // null: none
        int64_t cached = 0;               // tokens in the cache, without those that the adapter puts in front
        int64_t active = 0;               // the adapter acts from this token on; -1: its invocation has not been seen
    };
    std::vector<AdapterMix> mixes_;
    int64_t capacity_;  // of each sequence, as asked for; the cache may have room for more
    int64_t vocab_size_ = 0;
    std::unique_ptr<KvCache> cache_;
    std::vector<Slot> slots_;
    std::vector<float> logits_;
};

}  // namespace halfbyte
