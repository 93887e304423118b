// From a tensor in a file to a Weight. Private to io/.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/weight.h"
#include "io/safetensors.h"

namespace halfbyte {

/// "[2, 3]"
std::string shape_text(const std::vector<int64_t>& shape);

struct MatrixShape {
    int64_t rows, cols;
};
/// The last dimension is cols, the others are rows; a vector is 1 x n, a scalar 1 x 1. Error corrupt where the product
/// overflows.
MatrixShape matrix_shape(const std::vector<int64_t>& shape, std::string_view where);

/// The same bytes at an address that is a multiple of `alignment`: a copy where the file has them elsewhere.
Plane aligned(const Plane& plane, size_t alignment);

/// A plain tensor. `where` starts the errors. Errors: unsupported (a dtype with no storage), corrupt.
Weight float_weight(const SafetensorsEntry& entry, std::string_view where);

using TensorMap = std::map<std::string, SafetensorsEntry, std::less<>>;

/// One weight that is made of several tensors, its planes found.
struct QuantizedWeight {
    std::vector<int64_t> shape;
    Weight weight;
    DType stored = DType::u8;  ///< of the tensor of codes (bnb_4bit_quant_storage)
};

using QuantizedMap = std::map<std::string, QuantizedWeight, std::less<>>;

/// Takes every 4-bit weight and every one of LLM.int8(), with all its parts, out of `tensors`; what is left there is plain.
/// `where` starts the errors.
/// The layout is bitsandbytes' own: functional.py, class QuantState (as_dict, from_dict). Errors: corrupt, unsupported.
QuantizedMap take_bitsandbytes(TensorMap& tensors, std::string_view where);

/// Error corrupt, showing both, where quantization_config says another type, double quantisation or storage dtype than these weights
/// have: transformers writes what it saves, so one of the two is of another model.
void check_bitsandbytes(const QuantizedMap& weights, const nlohmann::json& config, std::string_view where,
                        const std::string& config_where);

// The same for other folders, by their quantization_config, whose place `config_where` says in errors.
/// GPTQ, 4 bits. Errors: corrupt, unsupported (other bits, layouts of other programs, activation order).
QuantizedMap take_gptq(TensorMap& tensors, const nlohmann::json& config, std::string_view where,
                       const std::string& config_where);
/// AWQ, 4 bits, version "gemm". Errors: corrupt, unsupported (other versions).
QuantizedMap take_awq(TensorMap& tensors, const nlohmann::json& config, std::string_view where,
                      const std::string& config_where);
/// Tensors of 8-bit floats with their scales; without a config (null) they may have none. Errors: corrupt.
QuantizedMap take_fp8(TensorMap& tensors, const nlohmann::json& config, std::string_view where,
                      const std::string& config_where);

}  // namespace halfbyte
