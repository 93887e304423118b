// The tensor types of ggml: numbers, names and block sizes. Private to io/.
#pragma once

#include <cstdint>
#include <string_view>

namespace halfbyte {

struct GgmlType {
    uint32_t number;
    std::string_view name;
    int32_t block;  ///< elements
    int32_t bytes;  ///< of one block
};

/// Null for numbers that were removed or that this version does not know.
const GgmlType* find_ggml_type(uint32_t number);

}  // namespace halfbyte
