// GGUF IQ2_XS. Plane 0: [rows, cols / 256] blocks of 74 bytes: unit f16; for each 8 elements a u16, 9 bits of it an index into a
// grid of vectors of 8 and 7 bits their signs (even_signs); for each 16 elements a factor of 4 bits, low nibble first. value =
// level * (d * (factor + 1/2) / 4). Reference: gguf/quants.py, class IQ2_XS.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq2Xs {
    static constexpr std::string_view kName = "iq2_xs";
    static constexpr int kElements = 256, kBytes = 74, kScaled = 16;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq2Levels;

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq2_xs_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const unsigned word = block[2 + 2 * i] | unsigned(block[3 + 2 * i]) << 8;
            storage::signed_codes(grid[word & 511], storage::even_signs(word >> 9), 3, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 16; g++) scales[g] = d * (0.5f + float((block[66 + g / 2] >> (g % 2 * 4)) & 15)) * 0.25f;
    }
};

}  // namespace

const Codebook4& iq2_xs_storage() {
    static const storage::GgmlCodebook<Iq2Xs> instance;
    return instance;
}

}  // namespace halfbyte
