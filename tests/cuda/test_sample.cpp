// Drawing tokens on the device: the very token that the host's Sampler draws from the same logits and random number.
#include <limits>

#include "cuda/kernels/launchers.h"
#include "harness.h"
#include "runtime/sampler.h"

namespace {

using namespace test;
using namespace halfbyte;
using namespace halfbyte::cuda;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<int32_t> drawn(const std::vector<std::vector<float>>& logits, const std::vector<SampleRow>& rows,
                           cudaError_t& error) {
    const size_t vocab = logits[0].size(), stride = vocab + 3;
    std::vector<float> all(logits.size() * stride, NAN);
    for (size_t r = 0; r < logits.size(); r++)
        std::copy(logits[r].begin(), logits[r].end(), all.begin() + int64_t(r * stride));
    const DeviceArray<float> device_logits(all);
    const DeviceArray<SampleRow> device_rows(rows);
    const DeviceArray<int32_t> tokens(rows.size());
    const DeviceArray<uint8_t> scratch(sample_scratch_bytes(int32_t(rows.size()), int32_t(vocab)));
    const Sample command{device_logits.data, int64_t(stride), device_rows.data, int32_t(rows.size()),
                         int32_t(vocab),     tokens.data,     scratch.data};
    error = run(command, nullptr);
    return tokens.host();
}

void as_the_host(const std::string& name, const std::vector<std::vector<float>>& logits,
                 const std::vector<SamplingOptions>& options) {
    std::vector<SampleRow> rows;
    std::vector<int32_t> want;
    for (size_t r = 0; r < logits.size(); r++) {
        Sampler asks(options[r]), draws(options[r]);
        const Draw draw = asks.next_draw();
        rows.push_back({draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.uniform});
        std::vector<float> copy = logits[r];
        want.push_back(draws.sample(copy));
    }
    cudaError_t error = cudaSuccess;
    const std::vector<int32_t> got = drawn(logits, rows, error);
    std::string problem = error == cudaSuccess ? "" : cudaGetErrorString(error);
    for (size_t r = 0; r < want.size() && problem.empty(); r++)
        if (got[r] != want[r])
            problem = "row " + std::to_string(r) + ": token " + std::to_string(got[r]) + ", not " + std::to_string(want[r]);
    report(name, problem);
}

SamplingOptions settings(float temperature, int64_t top_k, float top_p, float min_p, uint64_t seed) {
    SamplingOptions options;
    options.temperature = temperature, options.top_k = top_k, options.top_p = top_p, options.min_p = min_p,
    options.seed = seed;
    return options;
}

void cases() {
    uint64_t seed = 0;
    for (const size_t vocab : {1, 2, 31, 517, 4099, 32000}) {
        const int repeats = vocab > 5000 ? 1 : 4;
        for (int i = 0; i < repeats; i++) {
            std::vector<std::vector<float>> logits;
            std::vector<SamplingOptions> options;
            const auto add = [&](float temperature, int64_t top_k, float top_p, float min_p) {
                logits.push_back(normal(vocab, 2));
                options.push_back(settings(temperature, top_k, top_p, min_p, ++seed));
            };
            add(0, 0, 1, 0);
            add(1, 0, 1, 0);
            add(0.01f, 0, 1, 0);
            add(50, 0, 1, 0);
            add(0.8f, 1, 1, 0);
            add(0.8f, 40, 1, 0);
            add(1.2f, int64_t(vocab) + 5, 1, 0);
            add(1, 0, 0.9f, 0);
            add(1, 0, 0.01f, 0);
            add(1, 0, 0.9999f, 0);
            add(1, 0, 1, 0.05f);
            add(1, 0, 1, 0.9f);
            add(0.9f, 50, 0.8f, 0.02f);
            add(1, 0, 0.99f, 0.3f);  // min_p leaves less than top_p
            // Few different logits: ties at every cut, and tokens that cannot be.
            for (float& v : logits[5]) v = std::round(v);
            for (float& v : logits[7]) v = std::round(v);
            for (size_t t = 0; t + 1 < vocab; t += 3) logits[1][t] = -kInfinity, logits[12][t] = -kInfinity;
            as_the_host("sample of " + std::to_string(vocab) + ", " + std::to_string(i), logits, options);
        }
    }
    // Rows of equal logits; great differences; filters at their ends.
    for (const size_t vocab : {300, 4097}) {
        std::vector<std::vector<float>> logits;
        std::vector<SamplingOptions> options;
        const auto add = [&](std::vector<float> row, float temperature, int64_t top_k, float top_p, float min_p) {
            logits.push_back(std::move(row));
            options.push_back(settings(temperature, top_k, top_p, min_p, ++seed));
        };
        const std::vector<float> flat(vocab, 0.25f), spread = normal(vocab, 8);
        for (const float temperature : {0.0f, 1e-6f, 1.0f, 100.0f})
            for (const float top_p : {1e-6f, 0.5f, 0.999f, 1.0f}) {
                add(flat, temperature, 7, top_p, 0);
                add(spread, temperature, 0, top_p, top_p == 0.5f ? 0.01f : 0.0f);
            }
        std::vector<float> signs(vocab, -1);  // 0 and -0 are equal: the first one, and each with its chance
        signs[vocab / 2] = -0.0f, signs[vocab - 1] = 0;
        for (const float temperature : {0.0f, 0.01f}) add(signs, temperature, 0, temperature == 0 ? 1.0f : 0.9f, 0);
        std::vector<float> lonely(vocab, -kInfinity), great = normal(vocab);
        lonely[vocab / 2] = -3.4e38f, great[vocab - 1] = 3e38f;  // beside which all others weigh nothing
        for (const float top_p : {0.9f, 1.0f}) add(lonely, 1, 3, top_p, 0.1f), add(great, 1, 3, top_p, 0.1f);
        as_the_host("ends of " + std::to_string(vocab), logits, options);
    }
    // Half of so many that their weights are beyond 2^53, where doubles have no neighbours at 1.
    std::vector<SamplingOptions> half;
    for (int i = 0; i < 4; i++) half.push_back(settings(1, 0, 0.5f, 0, ++seed));
    as_the_host("half of equals", std::vector(half.size(), std::vector<float>(30000, 2.0f)), half);
    Sample nothing{};
    nothing.vocab = 10;
    report("no rows", run(nothing, nullptr) == cudaSuccess ? "" : "refused");
    nothing.count = 1;
    report("no scratch", run(nothing, nullptr) == cudaErrorInvalidValue ? "" : "accepted");
    // Nothing to draw from.
    std::vector<std::vector<float>> bad(4, normal(100));
    bad[0][41] = NAN, bad[1][99] = kInfinity;
    bad[2].assign(100, -kInfinity);
    cudaError_t error = cudaSuccess;
    const std::vector<int32_t> tokens =
        drawn(bad, {{0, 0, 1, 0, 0}, {1, 0, 1, 0, 0.5}, {1, 3, 0.5f, 0, 0.5}, {0, 0, 1, 0, 0}}, error);
    report("NaN, infinity, nothing", error != cudaSuccess ? cudaGetErrorString(error)
                                     : tokens[0] == -1 && tokens[1] == -1 && tokens[2] == -1 && tokens[3] >= 0
                                         ? ""
                                         : "a token was drawn, or none where there is one");
}

}  // namespace

int main(int argc, char** argv) { return test::run_all(argc, argv, cases); }
