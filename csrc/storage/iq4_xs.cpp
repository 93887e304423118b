// GGUF IQ4_XS. Plane 0: [rows, cols / 256] blocks of 136 bytes: unit f16; 8 factors of 6 bits, the high two of factor i in bits
// 2 i and 2 i + 1 of a u16, the low four in nibble i of 4 bytes; then for each 32 elements 16 bytes as in Q4_0. value =
// levels[code] * (d * (factor - 32)), levels as of IQ4_NL. Reference: gguf/quants.py, class IQ4_XS.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Iq4Xs {
    static constexpr std::string_view kName = "iq4_xs";
    static constexpr int kElements = 256, kBytes = 136, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq4Levels;

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<16>(block + 8, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 8; g++) {
            const int low = (block[4 + g / 2] >> (g % 2 * 4)) & 15, high = (block[2 + g / 4] >> (g % 4 * 2)) & 3;
            scales[g] = d * float((low | high << 4) - 32);
        }
    }
};

}  // namespace

const Codebook4& iq4_xs_storage() {
    static const storage::GgmlCodebook<Iq4Xs> instance;
    return instance;
}

}  // namespace halfbyte
