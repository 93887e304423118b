// A PEFT adapter of a tiny llama: names, shapes and dtypes of tensors. Input: adapter_config.json, NUL, header, NUL, data.
#include "header.h"
#include "runtime/peft.h"
#include "tiny_llama.h"

using namespace halfbyte;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const Model& model = fuzz::tiny_llama();
    fuzz::run([&] {
        fuzz::Bytes rest(data, size);
        const PeftConfig config(fuzz::take_text(rest), "adapter_config.json");
        const std::vector<uint8_t> file = fuzz::safetensors_of(rest);
        const auto adapter =
            bind_peft_adapter(config, parse_safetensors(fuzz::file_of(file)), "x", "x", model, fuzz::device());
        fuzz::require(adapter->bytes() <= 64 * size + 65536);
    });
    return 0;
}
