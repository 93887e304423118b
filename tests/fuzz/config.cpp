// config.json: every reader on every field, the rotary frequencies, the account of what was read. Input: the text.
#include "io/config.h"

#include <cmath>

#include "core/utf8.h"
#include "fuzz.h"
#include "io/folder.h"
#include "models/hyperparameters.h"

using halfbyte::Config, halfbyte::Key;

namespace {

void read_fields(const Config& config) {
    for (const char* name : {"hidden_size", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "rope_theta", "factor"}) {
        const Key key{name, ""};
        fuzz::run([&] { fuzz::require(halfbyte::dimension(config, key, 1) >= 1); });
        fuzz::run([&] { (void)config.integer(key); });
        fuzz::run([&] { fuzz::require(std::isfinite(config.number(key))); });
        fuzz::run([&] { (void)config.flag(key, false); });
        fuzz::run([&] { (void)halfbyte::activation_named(config.text(key), config); });
    }
    fuzz::run([&] { config.finish(); });
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string text(fuzz::text_of({data, size}));
    if (halfbyte::first_invalid_utf8(text) != std::string_view::npos) return 0;  // read_text_file() refuses it
    fuzz::run([&] {
        const Config config = halfbyte::parse_config("config.json", text);
        fuzz::run([&] {
            const halfbyte::Rope rope = halfbyte::rope_from_config(config, 64, 10000.0, {});
            fuzz::require(rope.frequencies.size() <= 32);
            for (const float frequency : rope.frequencies) fuzz::require(std::isfinite(frequency));
        });
        read_fields(config);
        for (const char* name : {"rope_parameters", "rope_scaling"}) {
            fuzz::run([&] {
                if (const auto child = config.child(name)) read_fields(*child);
            });
        }
    });
    return 0;
}
