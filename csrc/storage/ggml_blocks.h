// What the GGUF block formats share: rows of whole blocks of 32 elements, float16 numbers in front of each block's codes.
// Private to storage/.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "core/weight.h"

namespace halfbyte::storage {

constexpr int kGgmlBlock = 32;

/// Block `b` of a row, in plane 0: [rows, cols / 32] blocks of `block_bytes`.
inline const uint8_t* ggml_block(const Weight& weight, int block_bytes, int64_t row, int64_t b) {
    return weight.planes[0].as<uint8_t>() + (row * (weight.cols / kGgmlBlock) + b) * block_bytes;
}

/// The float16 at `block`, which need not be aligned.
inline float half_at(const uint8_t* block) {
    uint16_t bits;
    std::memcpy(&bits, block, sizeof bits);
    return f16_to_f32(bits);
}

/// 16 bytes to codes[32]: byte j holds element j in its low and element j + 16 in its high nibble.
inline void unpack_ggml_nibbles(const uint8_t* packed, uint8_t* codes) {
    for (int j = 0; j < kGgmlBlock / 2; j++) {
        codes[j] = packed[j] & 15;
        codes[j + kGgmlBlock / 2] = packed[j] >> 4;
    }
}

}  // namespace halfbyte::storage
