// halfbyte.hpp from C++17.
#include <stdexcept>

#include "check.h"
#include "halfbyte/halfbyte.hpp"

using check::contains;
using check::error_of;

namespace {

std::string folder(const std::string& name) { return check::folder() + "/" + name; }

}  // namespace

TEST(getters) {
    const hb::Model model(folder("llama"), hb::Options().device("cpu").threads(1).precision("float32"));
    CHECK(model.architecture() == "llama" && model.format() == "safetensors");
    CHECK(model.vocab_size() == 97 && model.hidden_size() == 48 && model.layers() == 2 && model.max_positions() == 600);
    CHECK(model.is_causal() && model.has_logits());
}

TEST(generation) {
    hb::Model model(folder("llama"), hb::Options().threads(1));
    const std::vector<int32_t> prompt{1, 2, 3};
    const std::vector<int32_t> all = model.generate(prompt, hb::GenerateOptions().max_tokens(10));
    CHECK(all.size() == 10);
    std::vector<int32_t> seen;
    const auto three = model.generate(prompt, hb::GenerateOptions().max_tokens(10), [&](int32_t token) {
        seen.push_back(token);
        return seen.size() < 3;
    });
    CHECK(three == seen && three == std::vector<int32_t>(all.begin(), all.begin() + 3));

    model.set_vocabulary(std::vector<std::string>(97, "ab"));
    hb::Generation generation = model.start(prompt, hb::GenerateOptions().max_tokens(10).stop_text("babab"));
    std::string text;
    while (generation.step()) text += generation.piece();
    CHECK(text == "a" && generation.finish_reason() == "stop" && generation.tokens().size() == 3);
}

TEST(what_a_callback_throws_is_thrown_on) {
    const hb::Model model(folder("llama"), hb::Options().threads(1));
    const auto thrower = [](int32_t) -> bool { throw std::logic_error("from the callback"); };
    CHECK(error_of([&] { (void)model.generate({1}, hb::GenerateOptions(), thrower); }) == "from the callback");
}

TEST(results) {
    hb::Model model(folder("llama"), hb::Options().quantize("nf4"));
    CHECK(model.logits({1, 2, 3}).size() == 3 * 97);
    CHECK(model.hidden_states({1, 2, 3}).size() == 3 * 48);
    CHECK(model.embed({{1, 2}, {3}}, "last").size() == 2 * 48);
    model.attach_adapter(folder("adapter"), "tuned");
    CHECK(model.logits({1, 2, 3}, "tuned") != model.logits({1, 2, 3}));
    CHECK(model.generate({1}, hb::GenerateOptions().max_tokens(3).adapter("tuned").temperature(1).seed(3)).size() == 3);
    CHECK(model.generate({1}, hb::GenerateOptions().max_tokens(3).add_adapter("tuned", 0.5f)).size() == 3);
    CHECK(contains(error_of([&] { model.classify({1}, "tuned"); }), "no classification head"));
    model.detach_adapter("tuned");
    CHECK(contains(error_of([&] { model.logits({1}, "tuned"); }), "no adapter \"tuned\""));
}

TEST(errors) {
    try {
        const hb::Model model(folder("missing"));
        CHECK(false);
    } catch (const hb::Error& error) {
        CHECK(error.status() == HB_NOT_FOUND && contains(error.what(), "missing"));
    }
    CHECK(contains(error_of([] { hb::Options().precision("low"); }), "precision"));
}
