// GGUF Q2_K. Plane 0: [rows, cols / 256] blocks of 84 bytes: for each 16 elements a byte with a factor (low nibble) and an
// offset (high), 64 bytes of codes, then f16 units of the factors and of the offsets. Of 128 elements, element 32 s + l is bits
// 2 s and 2 s + 1 of byte l. value = code * (d * factor) - dmin * offset. Reference: gguf/quants.py, class Q2_K.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q2K {
    static constexpr std::string_view kName = "q2_k";
    static constexpr int kElements = 256, kBytes = 84, kScaled = 16;
    static constexpr bool kOffsets = true;
    static constexpr std::array<float, 16> kLevels = {0, 1, 2, 3};

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_pairs(block + 16, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float* offsets) {
        const float d = storage::half_at(block + 80), dmin = storage::half_at(block + 82);
        for (int g = 0; g < 16; g++) {
            scales[g] = d * float(block[g] & 15);
            offsets[g] = -(dmin * float(block[g] >> 4));
        }
    }
};

}  // namespace

const Codebook4& q2_k_storage() {
    static const storage::GgmlCodebook<Q2K> instance;
    return instance;
}

}  // namespace halfbyte
