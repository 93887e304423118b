#include <cmath>
#include <limits>

#include "check.h"
#include "runtime/sampler.h"

using check::contains;
using check::error_of;
using halfbyte::Sampler;
using halfbyte::SamplingOptions;

namespace {

std::vector<double> probabilities(const SamplingOptions& options, std::vector<float> logits) {
    std::vector<double> out(logits.size());
    Sampler(options).probabilities(logits, out);
    return out;
}

}  // namespace

TEST(greedy_takes_the_first_of_the_greatest) {
    std::vector<float> logits{1, 3, 3, -2};
    CHECK(Sampler({}).sample(logits) == 1);
}

TEST(exponentials_are_those_of_libm) {
    std::vector<float> logits;
    for (int i = 0; i < 4000; i++) logits.push_back(-0.173f * float(i));
    const std::vector<double> found = probabilities({.temperature = 1}, logits);
    for (size_t i = 0; i < logits.size(); i++) {
        const double expected = std::exp(double(logits[i])) * found[0];
        CHECK(std::abs(found[i] - expected) <= 4e-15 * expected);
    }
}

TEST(filters) {
    const std::vector<float> logits{std::log(0.5f), std::log(0.25f), std::log(0.15f), std::log(0.1f)};
    const auto kept = [&](const SamplingOptions& options) {
        std::string text;
        for (const double p : probabilities(options, logits)) text += p > 0 ? '1' : '0';
        return text;
    };
    CHECK(kept({.temperature = 1}) == "1111");
    CHECK(kept({.temperature = 1, .top_k = 2}) == "1100");
    CHECK(kept({.temperature = 1, .top_p = 0.4f}) == "1000");
    CHECK(kept({.temperature = 1, .top_p = 0.6f}) == "1100");
    CHECK(kept({.temperature = 1, .top_p = 0.95f}) == "1111");
    CHECK(kept({.temperature = 1, .min_p = 0.4f}) == "1100");
}

TEST(the_same_seed_gives_the_same_tokens_everywhere) {
    const auto draw = [](uint64_t seed) {
        Sampler sampler({.temperature = 1, .seed = seed});
        std::string text;
        for (int i = 0; i < 20; i++) {
            std::vector<float> logits(10, 0.0f);
            text += char('0' + sampler.sample(logits));
        }
        return text;
    };
    CHECK(draw(7) != draw(8));
    CHECK(draw(7) == "30954243141998858367");  // floor(10 * u) of the SplitMix64 stream, worked out from its paper
}

TEST(logits_that_are_no_numbers_are_an_error) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        for (const float temperature : {0.0f, 1.0f}) {
            std::vector<float> logits{0, bad, 1};
            CHECK(contains(error_of([&] { Sampler({.temperature = temperature}).sample(logits); }), "logit of token 1 is"));
        }
    }
}

TEST(wrong_options_are_named) {
    CHECK(contains(error_of([] { Sampler({.temperature = -1}); }), "temperature"));
    CHECK(contains(error_of([] { Sampler({.top_k = -1}); }), "top_k"));
    CHECK(contains(error_of([] { Sampler({.top_p = 0}); }), "top_p"));
    CHECK(contains(error_of([] { Sampler({.min_p = 1}); }), "min_p"));
    CHECK(contains(error_of([] { Sampler({.repetition_penalty = 0}); }), "repetition_penalty"));
}
