// adapter_config.json of PEFT, its patterns among it. Input: a module's name, NUL, the text.
#include "runtime/lora_config.h"

#include <cmath>

#include "core/utf8.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::Bytes rest(data, size);
    const std::string module(fuzz::take_text(rest).substr(0, 200));
    if (halfbyte::first_invalid_utf8(module) != std::string_view::npos) return 0;  // names come from JSON
    fuzz::run([&] {
        const halfbyte::LoraConfig config(fuzz::text_of(rest), "adapter_config.json");
        for (const int64_t rank : {4, 8, 0, -1})
            fuzz::run([&] { fuzz::require(std::isfinite(config.scale(module, rank))); });
    });
    return 0;
}
