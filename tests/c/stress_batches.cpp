// Batches whose sequences each have their own adapters, on many threads, while those adapters are replaced, put away and unloaded.
#include <atomic>
#include <thread>

#include "check.h"
#include "runtime/decoder.h"
#include "runtime/engine.h"

namespace {

using namespace halfbyte;

constexpr int kThreads = 3;
constexpr int kRounds = 12;
const std::vector<int32_t> kPrompts{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18};
const std::vector<int64_t> kLengths{4, 1, 6, 3};

/// None, one, half of one, a sum. What is asked for by name may be read from the disk, and be replaced right afterwards.
std::vector<AdapterMix> mixes(const Engine& engine) {
    const auto get = [&](const char* name) { return engine.adapters().get(name); };
    return {AdapterMix(), AdapterMix(get("kept")), AdapterMix({{get("lazy"), 0.5f}}),
            AdapterMix({{get("kept"), -0.25f}, {get("lazy"), 1.5f}})};
}

/// Logits behind the prompts and behind three more tokens of each, one after the other.
std::vector<float> decoded(const std::shared_ptr<Engine>& engine) {
    BatchDecoder decoder(engine, int64_t(kLengths.size()), 16, mixes(*engine));
    std::vector<float> out;
    const std::vector<int64_t> one(kLengths.size(), 1);
    for (int32_t step = 0; step < 4; step++) {
        if (step == 0)
            decoder.extend(kPrompts, kLengths);
        else
            decoder.extend(std::vector<int32_t>{step, 20 + step, 40 + step, 60 + step}, one);
        out.insert(out.end(), decoder.logits().begin(), decoder.logits().end());
    }
    return out;
}

std::vector<float> packed(const Engine& engine) {
    const std::vector<AdapterMix> each = mixes(engine);
    TokenBatch batch{.tokens = kPrompts, .lengths = kLengths, .positions = {}, .token_types = {}, .adapters = each};
    std::vector<float> out(kPrompts.size() * size_t(engine.logits_size(batch)));
    engine.logits(batch, out.data());
    return out;
}

}  // namespace

TEST(threads_run_mixed_batches_while_adapters_come_and_go) {
    const std::string adapter = check::folder() + "/adapter";
    EngineOptions options;
    options.device = "cpu", options.threads = 2;
    const std::shared_ptr<Engine> engine = Engine::load(check::folder() + "/llama", options);
    AdapterRegistry& adapters = engine->adapters();
    adapters.add(adapter, "kept", true, false);
    adapters.add(adapter, "lazy", false, true);
    const std::vector<float> steps = decoded(engine), rows = packed(*engine);

    std::atomic<bool> done{false};
    std::thread loader([&] {
        for (uint64_t round = 0; !done; round++) {
            adapters.add(adapter, "kept", round % 2 == 0, false);  // replaced under those who use it
            adapters.add(adapter, "lazy", false, true);
            adapters.add(adapter, "passing", false, round % 2 == 0);
            adapters.set_budget(round % 3);  // no limit, or none stays that is not in use
            (void)adapters.get("passing");
            (void)adapters.stats();
            adapters.remove("passing");
        }
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++)
        threads.emplace_back([&, t] {
            const std::string error = check::error_of([&] {
                for (int round = 0; round < kRounds; round++) {
                    CHECK(decoded(engine) == steps);
                    CHECK(packed(*engine) == rows);
                }
            });
            if (!error.empty()) check::that(false, error.c_str(), "thread", t);
        });
    for (std::thread& thread : threads) thread.join();
    done = true;
    loader.join();
}
