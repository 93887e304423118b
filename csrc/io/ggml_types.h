// The tensor types of ggml: numbers, names, block sizes and storages.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "storage/storage.h"

namespace halfbyte {

struct GgmlType {
    uint32_t number;
    std::string_view name;
    int32_t block;  ///< elements
    int32_t bytes;  ///< of one block
    /// Null for what is no weight here: integers, the types that only activations are rounded to, and Q1_0.
    const Storage* (*storage)() = nullptr;
};

std::span<const GgmlType> ggml_types();
/// Null for numbers that were removed or that this version does not know.
const GgmlType* find_ggml_type(uint32_t number);

}  // namespace halfbyte
