// GGUF Q3_K. Plane 0: [rows, cols / 256] blocks of 110 bytes: 32 bytes with the third bit of every element (of element 32 i + l
// bit i of byte l), 64 bytes with the low two as in Q2_K, 12 bytes with 16 factors of 6 bits, unit f16. value = (d * (factor -
// 32)) * level, level = code - 4. Reference: gguf/quants.py, class Q3_K.
//
// A factor times a level fits in a byte if its sign is turned: -(factor - 32) * level lies in -128 .. 124. So the whole block is
// bytes with one scale, -d, and exact: both orders of the product have at most 20 digits.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q3K {
    static constexpr std::string_view kName = "q3_k";
    static constexpr int kElements = 256, kBytes = 110, kScaled = 256;
    static constexpr bool kOffsets = false;

    static int factor(const uint8_t* block, int group) {
        const uint8_t* packed = block + 96;
        const int low = group < 8 ? packed[group] & 15 : packed[group - 8] >> 4;
        return (low | ((packed[8 + group % 4] >> (group / 4 * 2)) & 3) << 4) - 32;
    }
    /// levels[256]: -4 .. 3
    static void plain_levels(const uint8_t* block, int8_t* levels) {
        storage::unpack_ggml_pairs(block + 32, kElements, levels);
        for (int bit = 0; bit < 8; bit++, levels += 32)
            for (int l = 0; l < 32; l++) levels[l] = int8_t((levels[l] | ((block[l] >> bit) & 1) << 2) - 4);
    }

    static void codes(const uint8_t* block, int8_t* levels) {
        plain_levels(block, levels);
        for (int group = 0; group < 16; group++, levels += 16) {
            const int turned = -factor(block, group);
            for (int i = 0; i < 16; i++) levels[i] = int8_t(turned * levels[i]);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = -storage::half_at(block + 108); }
    /// In the reference's order, which also decides the sign of a zero.
    static void decode(const uint8_t* block, float* out) {
        const float d = storage::half_at(block + 108);
        int8_t levels[kElements];
        plain_levels(block, levels);
        for (int i = 0; i < kElements; i++) out[i] = d * float(factor(block, i / 16)) * float(levels[i]);
    }
};

}  // namespace

const Int8Blocks& q3_k_storage() {
    static const storage::GgmlInt8<Q3K> instance;
    return instance;
}

}  // namespace halfbyte
