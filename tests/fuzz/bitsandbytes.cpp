// The tensors of a bitsandbytes folder: quant_state, planes, LLM.int8(). Input: header, NUL, data.
#include "core/error.h"
#include "header.h"
#include "io/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::run([&] {
        const std::vector<uint8_t> file = fuzz::safetensors_of({data, size});
        halfbyte::TensorMap tensors = halfbyte::parse_safetensors(fuzz::file_of(file));
        const size_t before = tensors.size();
        const auto weights = halfbyte::take_bitsandbytes(tensors, "input");
        fuzz::require(tensors.size() + weights.size() <= before);
        for (const auto& [name, found] : weights) fuzz::run([&, &weight = found.weight] { fuzz::read_weight(weight); });
    });
    return 0;
}
