// Any bytes as a safetensors file: every tensor lies within it, and those of floats are decoded.
#include "io/safetensors.h"

#include "fuzz.h"
#include "io/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        uint64_t bytes = 0;
        for (const auto& [name, entry] : halfbyte::parse_safetensors(fuzz::file_of({data, size}))) {
            bytes += entry.bytes.bytes;
            fuzz::run([&, &tensor = entry] { fuzz::read_weight(halfbyte::float_weight(tensor, "input")); });
        }
        fuzz::require(bytes <= size);
    });
    return 0;
}
