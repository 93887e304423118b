// A Hugging Face folder of which a model is loaded and run. Input: config.json, NUL, header, NUL, data.
#include "core/utf8.h"
#include "header.h"
#include "io/folder.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        fuzz::Bytes rest(data, size);
        const std::string text(fuzz::take_text(rest));
        if (halfbyte::first_invalid_utf8(text) != std::string_view::npos) return;  // read_text_file() refuses it
        halfbyte::Config config = halfbyte::parse_config("config.json", text);
        const std::vector<uint8_t> file = fuzz::safetensors_of(rest);
        halfbyte::TensorMap tensors = halfbyte::parse_safetensors(fuzz::file_of(file));
        const auto checkpoint =
            halfbyte::make_folder_checkpoint("input", std::move(config), text, std::move(tensors), "input");
        fuzz::read_all(*checkpoint);
        fuzz::run_model(*checkpoint);
    });
    return 0;
}
