// Any bytes as JSON: what is accepted is written and read again to the same document.
#include "io/json.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        const nlohmann::json document = halfbyte::parse_json(fuzz::text_of({data, size}), "input");
        const std::string text = document.dump();  // throws for strings that are not UTF-8
        fuzz::require(halfbyte::parse_json(text, "input") == document);
    });
    return 0;
}
