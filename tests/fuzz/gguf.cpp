// Any bytes as a GGUF file: opened, and all of it read.
#include "io/gguf.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        std::vector<halfbyte::GgufFile> files;
        files.push_back(halfbyte::GgufFile::parse(fuzz::file_of({data, size})));
        for (const std::string& key : files[0].keys()) {
            const halfbyte::GgufValue& value = *files[0].find(key);
            if (value.type == halfbyte::GgufType::array && value.element == halfbyte::GgufType::string) {
                size_t bytes = 0;
                for (const std::string_view text : value.texts()) bytes += text.size();
                fuzz::require(bytes <= size);
            }
        }
        fuzz::read_all(halfbyte::GgufCheckpoint("input", std::move(files)));
    });
    return 0;
}
