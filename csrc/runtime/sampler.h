// From logits to one token id.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"

namespace halfbyte {

/// Filters run in the order of transformers' logits processors: repetition, presence and frequency penalties, temperature,
/// top_k, top_p, min_p. temperature 0 is greedy (the lowest id wins a tie) and ignores the filters below it.
struct SamplingOptions {
    float temperature = 0;  ///< >= 0
    int64_t top_k = 0;      ///< 0: off
    float top_p = 1;        ///< (0, 1]; 1: off
    float min_p = 0;        ///< [0, 1): least probability, as a fraction of the most probable token's
    float repetition_penalty =
        1;                       ///< > 0: divides positive and multiplies negative logits of tokens seen (prompt and output)
    float presence_penalty = 0;  ///< subtracted once from tokens generated so far
    float frequency_penalty = 0;  ///< subtracted once per occurrence among tokens generated so far
    uint64_t seed = 0;
};

/// The same seed and logits give the same tokens on every platform.
class Sampler {
public:
    /// Errors: invalid_argument, naming the option and its range.
    explicit Sampler(const SamplingOptions& options);
    /// Tokens of the prompt: they count for the repetition penalty alone.
    void observe_prompt(std::span<const int32_t> tokens);
    /// logits [vocab] are changed. The token returned is remembered as generated.
    /// Errors: corrupt where a logit is NaN or +infinity, or all of them are -infinity: there is no distribution to draw
    /// from.
    int32_t sample(std::span<float> logits);
    /// True where the logits are used as they come (no penalties), so that a device may draw by itself.
    bool takes_plain_logits() const;
    /// What a device needs for the next token; the random number is used up. remember() its answer.
    Draw next_draw();
    void remember(int32_t token);
    /// The distribution that sample() would draw from next: out [vocab], summing to 1. Draws and remembers nothing.
    void probabilities(std::span<float> logits, std::span<double> out);

private:
    struct Candidate {
        int32_t id;
        double weight;  // in proportion to the probability; 1 for the greatest logit
    };
    void penalize(std::span<float> logits) const;
    void filter(std::span<const float> logits);  // fills candidates_; at least one
    double uniform();                            // [0, 1), 53 bits

    SamplingOptions options_;
    uint64_t state_;
    std::vector<uint8_t> seen_;          // [vocab], grown on demand: in prompt or output
    std::vector<int32_t> generated_;     // [vocab], grown on demand: times generated
    std::vector<float> best_;            // scratch: the top_k greatest logits
    std::vector<Candidate> candidates_;  // scratch
};

}  // namespace halfbyte
