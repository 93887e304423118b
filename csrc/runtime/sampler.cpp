#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"

namespace halfbyte {

namespace {

/// e^x for x <= 0, of additions and multiplications alone: libm's exp may differ in the last bit from one platform to the
/// next, and then the same seed could give another token. Relative error below 1e-15; 0 below e^-700.
inline double exp_portable(double x) {
    constexpr double kInverseFactorials[] = {
        1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880., 1 / 40320., 1 / 5040.,
        1 / 720.,        1 / 120.,       1 / 24.,       1 / 6.,       1 / 2.,      1.,         1.};
    constexpr double kRound = 0x1.8p52;           // adding it leaves an integer in the low bits
    constexpr double kLn2Head = 0x1.62e42feep-1;  // 32 bits: times n it is exact
    constexpr double kLn2Tail = 0x1.a39ef35793c76p-33;
    const double clamped = x > -700 ? x : -700;
    const double shifted = clamped * 0x1.71547652b82fep+0 + kRound;
    const double n = shifted - kRound;
    const double r = (clamped - n * kLn2Head) - n * kLn2Tail;  // |r| <= ln(2) / 2
    // Taylor to r^13: the first term left out is below 5e-18.
    double sum = 0;
    for (int i = 0; i < 14; i++) sum = sum * r + kInverseFactorials[i];
    const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(shifted) + 1023) << 52);  // 2^n
    return x > -700 ? sum * power : 0;
}

void check(bool good, const char* option, const char* expected, double found) {
    if (!good) fail(ErrorCode::invalid_argument, "sampling: ", option, " must be ", expected, ", found ", found);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), state_(options.seed) {
    const auto finite = [](float value) { return std::isfinite(value); };
    check(finite(options.temperature) && options.temperature >= 0, "temperature", "0 (greedy) or more", options.temperature);
    check(options.top_k >= 0, "top_k", "0 (off) or more", double(options.top_k));
    check(options.top_p > 0 && options.top_p <= 1, "top_p", "above 0 and at most 1 (off)", options.top_p);
    check(options.min_p >= 0 && options.min_p < 1, "min_p", "at least 0 (off) and below 1", options.min_p);
    check(finite(options.repetition_penalty) && options.repetition_penalty > 0, "repetition_penalty", "above 0 (1: off)",
          options.repetition_penalty);
    check(finite(options.presence_penalty), "presence_penalty", "a finite number (0: off)", options.presence_penalty);
    check(finite(options.frequency_penalty), "frequency_penalty", "a finite number (0: off)", options.frequency_penalty);
}

void Sampler::observe_prompt(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) {
        if (token < 0) fail(ErrorCode::invalid_argument, "sampling: token ids are 0 or more, found ", token);
        if (size_t(token) >= seen_.size()) seen_.resize(size_t(token) + 1);
        seen_[size_t(token)] = 1;
    }
}

int32_t Sampler::sample(std::span<float> logits) {
    penalize(logits);
    filter(logits);
    double total = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    int32_t token = candidates_.front().id;
    if (options_.temperature != 0) {
        double left = uniform() * total;
        for (const Candidate& candidate : candidates_) {
            if (candidate.weight == 0) continue;
            token = candidate.id;  // rounding may leave a rest behind the last one
            left -= candidate.weight;
            if (left < 0) break;
        }
    }
    remember(token);
    return token;
}

bool Sampler::takes_plain_logits() const {
    return options_.repetition_penalty == 1 && options_.presence_penalty == 0 && options_.frequency_penalty == 0;
}

Draw Sampler::next_draw() {
    Draw draw;
    draw.temperature = options_.temperature;
    // More than the vocabulary is all of it.
    draw.top_k = int32_t(std::min<int64_t>(options_.top_k, std::numeric_limits<int32_t>::max()));
    draw.top_p = options_.top_p, draw.min_p = options_.min_p;
    draw.uniform = options_.temperature == 0 ? 0 : uniform();
    return draw;
}

void Sampler::remember(int32_t token) {
    observe_prompt({&token, 1});
    if (size_t(token) >= generated_.size()) generated_.resize(size_t(token) + 1);
    generated_[size_t(token)]++;
}

void Sampler::probabilities(std::span<float> logits, std::span<double> out) {
    if (out.size() != logits.size())
        fail(ErrorCode::internal, "sampling: ", out.size(), " outputs for ", logits.size(), " logits");
    penalize(logits);
    filter(logits);
    double total = 0;
    for (const Candidate& candidate : candidates_) total += candidate.weight;
    std::fill(out.begin(), out.end(), 0.0);
    for (const Candidate& candidate : candidates_) out[size_t(candidate.id)] = candidate.weight / total;
}

void Sampler::penalize(std::span<float> logits) const {
    if (options_.repetition_penalty != 1) {
        const size_t count = std::min(seen_.size(), logits.size());
        for (size_t i = 0; i < count; i++) {
            if (seen_[i] == 0) continue;
            if (logits[i] < 0)
                logits[i] *= options_.repetition_penalty;
            else
                logits[i] /= options_.repetition_penalty;
        }
    }
    if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
        const size_t count = std::min(generated_.size(), logits.size());
        for (size_t i = 0; i < count; i++)
            if (generated_[i] != 0)
                logits[i] -= options_.presence_penalty + options_.frequency_penalty * float(generated_[i]);
    }
}

void Sampler::filter(std::span<const float> logits) {
    if (logits.empty()) fail(ErrorCode::invalid_argument, "sampling: there are no logits");
    size_t greatest = 0;
    for (size_t i = 0; i < logits.size(); i++) {
        if (!(logits[i] <= std::numeric_limits<float>::max()))  // NaN too
            fail(ErrorCode::corrupt, "sampling: the logit of token ", i, " is ", logits[i],
                 "; expected finite numbers: the checkpoint or its adapter holds NaN, infinite or far too large weights");
        if (logits[i] > logits[greatest]) greatest = i;
    }
    const double top = logits[greatest];
    if (!(top >= std::numeric_limits<float>::lowest()))
        fail(ErrorCode::corrupt, "sampling: every one of ", logits.size(),
             " logits is -infinity: there is no token to choose");

    candidates_.clear();
    if (options_.temperature == 0) {
        candidates_.push_back({int32_t(greatest), 1.0});
        return;
    }
    // top_k: every logit that reaches the k-th greatest, as transformers does, so that ties all stay.
    float least = -std::numeric_limits<float>::infinity();
    if (options_.top_k > 0 && uint64_t(options_.top_k) < logits.size()) {
        best_.resize(size_t(options_.top_k));
        std::partial_sort_copy(logits.begin(), logits.end(), best_.begin(), best_.end(), std::greater<>());
        least = best_.back();
    }
    for (size_t i = 0; i < logits.size(); i++)
        if (logits[i] >= least)
            candidates_.push_back({int32_t(i), (double(logits[i]) - top) / double(options_.temperature)});
    double total = 0;
    for (Candidate& candidate : candidates_) total += candidate.weight = exp_portable(candidate.weight);

    if (options_.top_p < 1) {
        // Each is kept as long as those above it do not reach top_p. Most distributions need a few: they are sorted piece by
        // piece.
        const auto before = [](const Candidate& a, const Candidate& b) {
            return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
        };
        const auto begin = candidates_.begin(), end = candidates_.end();
        auto kept = begin, sorted = begin;
        for (double above = 0; kept != end && above < double(options_.top_p) * total; above += (kept++)->weight) {
            if (kept < sorted) continue;
            sorted += std::min(end - sorted, std::max<std::ptrdiff_t>(128, 3 * (sorted - begin)));
            std::nth_element(kept, sorted == end ? end - 1 : sorted, end, before);
            std::sort(kept, sorted, before);
        }
        candidates_.erase(kept, end);
    }
    if (options_.min_p > 0)  // the greatest weight is 1
        std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.weight < double(options_.min_p); });
}

double Sampler::uniform() {
    // SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return double(z >> 11) * 0x1p-53;
}

}  // namespace halfbyte
