// From a tensor in a file to a Weight. Private to io/.
#pragma once

#include <cstdint>
#include <map>
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

/// One weight of a bitsandbytes checkpoint, its planes found and its quant_state read.
struct BitsAndBytesWeight {
    std::vector<int64_t> shape;
    Weight weight;
};

/// Takes every 4-bit weight and every one of LLM.int8(), with all its parts, out of `tensors`; what is left there is plain.
/// `where` starts the errors.
/// The layout is bitsandbytes' own: functional.py, class QuantState (as_dict, from_dict). Errors: corrupt, unsupported.
std::map<std::string, BitsAndBytesWeight, std::less<>> take_bitsandbytes(TensorMap& tensors, std::string_view where);

}  // namespace halfbyte
