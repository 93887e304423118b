// A GGUF adapter of a tiny llama, of llama.cpp's kind or of halfbyte's. Input: the file.
#include "runtime/gguf_adapter.h"
#include "fuzz.h"
#include "tiny_llama.h"

using namespace halfbyte;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const Model& model = fuzz::tiny_llama();
    fuzz::run([&] {
        const std::vector<uint8_t> bytes(data, data + size);
        const auto adapter = bind_gguf_adapter(GgufFile::parse(fuzz::file_of(bytes)), "x", model, fuzz::device());
        fuzz::require(adapter->bytes() <= 64 * size + 65536);
    });
    return 0;
}
