// GGUF IQ1_S. Plane 0: [rows, cols / 256] blocks of 50 bytes: unit f16; for each 8 elements the low byte of an index into a grid of
// vectors of 8 (32 bytes); for each 32 elements a u16: 4 times the high three bits of an index, a factor of 3 bits, and the sign
// of what is added to the digits. value = (digit - 1 +- 1/8) * (d * (2 * factor + 1)). Reference: gguf/quants.py, class IQ1_S.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq1S {
    static constexpr std::string_view kName = "iq1_s";
    static constexpr int kElements = 256, kBytes = 50, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq1Levels;

    static unsigned head(const uint8_t* block, int group) {
        return block[34 + 2 * group] | unsigned(block[35 + 2 * group]) << 8;
    }
    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq1_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const unsigned word = head(block, i / 4);
            const unsigned index = block[2 + i] | ((word >> (i % 4 * 3)) & 7) << 8;
            storage::signed_codes(grid[index], (word & 0x8000) != 0 ? 255 : 0, 3, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 8; g++) scales[g] = d * float(2 * ((head(block, g) >> 12) & 7) + 1);
    }
};

}  // namespace

const Codebook4& iq1_s_storage() {
    static const storage::GgmlCodebook<Iq1S> instance;
    return instance;
}

}  // namespace halfbyte
