// Many threads on one model, while adapters come and go: every result must be the one that a single thread gets.
#include <atomic>
#include <thread>

#include "check.h"
#include "halfbyte/halfbyte.hpp"

namespace {

constexpr int kThreads = 4;
constexpr int kRounds = 6;

hb::GenerateOptions sampled(uint64_t seed) {
    return std::move(hb::GenerateOptions().max_tokens(24).temperature(0.9f).top_p(0.9f).seed(seed));
}

template <class F>
void in_threads(F body) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++) {
        threads.emplace_back([&body, t] {
            const std::string error = check::error_of([&] { body(t); });
            if (!error.empty()) check::that(false, error.c_str(), "thread", t);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST(threads_generate_while_adapters_come_and_go) {
    hb::Model model(check::folder() + "/llama", hb::Options().threads(2));
    const std::string adapter = check::folder() + "/adapter";
    const std::vector<int32_t> prompt{5, 6, 7, 8, 9};
    model.attach_adapter(adapter, "kept");
    std::vector<std::vector<int32_t>> plain, tuned;
    for (int t = 0; t < kThreads; t++) {
        plain.push_back(model.generate(prompt, sampled(uint64_t(t))));
        tuned.push_back(model.generate(prompt, sampled(uint64_t(t)).adapter("kept")));
    }
    CHECK(plain[0] != tuned[0]);
    const std::vector<float> logits = model.logits(prompt), embedding = model.embed({prompt, {1, 2}}, "mean");

    std::atomic<bool> done{false};
    std::thread loader([&] {
        for (int round = 0; !done; round++) {
            const std::string name = "adapter " + std::to_string(round % 3);
            model.attach_adapter(adapter, name);
            model.attach_adapter(adapter, "kept");  // replaces it under those who use it
            model.set_vocabulary(std::vector<std::string>(97, "x"));
            model.detach_adapter(name);
        }
    });
    in_threads([&](int t) {
        const auto i = size_t(t);
        for (int round = 0; round < kRounds; round++) {
            CHECK(model.generate(prompt, sampled(uint64_t(t))) == plain[i]);
            CHECK(model.generate(prompt, sampled(uint64_t(t)).adapter("kept")) == tuned[i]);
            CHECK(model.logits(prompt) == logits);
            CHECK(model.embed({prompt, {1, 2}}, "mean") == embedding);
            (void)check::error_of([&] { model.logits(prompt, "adapter 1"); });  // may be gone at any moment
        }
    });
    done = true;
    loader.join();
}

TEST(threads_open_models_and_see_their_own_errors) {
    in_threads([](int t) {
        for (int round = 0; round < kRounds; round++) {
            const hb::Model model(check::folder() + "/bert", hb::Options().threads(1 + t % 2));
            CHECK(model.embed({{1, 2, 3}}).size() == 32);
            const std::string missing = "missing-" + std::to_string(t);
            const std::string error = check::error_of([&] { hb::Model(check::folder() + "/" + missing); });
            CHECK(check::contains(error, missing));
        }
    });
}

TEST(threads_step_generations_of_one_model) {
    hb::Model model(check::folder() + "/llama", hb::Options().threads(3));
    in_threads([&](int t) {
        std::vector<hb::Generation> running;
        for (int g = 0; g < 3; g++) running.push_back(model.start({1, 2, t, g}, sampled(uint64_t(g))));
        for (bool more = true; more;) {
            more = false;
            for (hb::Generation& generation : running) more = generation.step() || more;
        }
        for (int g = 0; g < 3; g++) {
            const std::vector<int32_t> alone = model.generate({1, 2, t, g}, sampled(uint64_t(g)));
            CHECK(running[size_t(g)].tokens() == alone);
        }
    });
}

TEST(threads_read_adapters_within_a_budget) {
    hb::Model model(check::folder() + "/llama", hb::Options().threads(2));
    const std::string adapter = check::folder() + "/adapter";
    const std::vector<int32_t> prompt{5, 6, 7, 8, 9};
    model.attach_adapter(adapter, "first");
    const std::vector<float> logits = model.logits(prompt, "first");
    const std::vector<int32_t> half = model.generate(prompt, sampled(7).add_adapter("first", 0.5f));
    model.set_adapter_budget(1);  // none stays that is not in use
    for (int i = 0; i < 4; i++) model.register_adapter(adapter, "lazy " + std::to_string(i), i == 0);
    in_threads([&](int t) {
        for (int round = 0; round < 4 * kRounds; round++) {
            const std::string name = "lazy " + std::to_string((t + round) % 4);
            CHECK(model.logits(prompt, name) == logits);
            CHECK(model.generate(prompt, sampled(7).add_adapter(name, 0.5f)) == half);
            if (t == 0) model.register_adapter(adapter, "lazy 3");  // another under the same name
        }
    });
    uint64_t hits = 0, misses = 0;
    CHECK(hb_model_adapter_stats(model.get(), &hits, &misses, nullptr) == HB_OK);
    CHECK(misses >= 4 && hits + misses > size_t(kThreads) * 8 * kRounds);
}
