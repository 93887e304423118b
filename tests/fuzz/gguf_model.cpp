// A GGUF file of which a model is loaded and run.
#include "fuzz.h"
#include "io/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        std::vector<halfbyte::GgufFile> files;
        files.push_back(halfbyte::GgufFile::parse(fuzz::file_of({data, size})));
        fuzz::run_model(halfbyte::GgufCheckpoint("input", std::move(files)));
    });
    return 0;
}
