// GGUF IQ2_S. Plane 0: [rows, cols / 256] blocks of 82 bytes: unit f16; for each 8 elements the low byte of an index into a grid of
// vectors of 8 (32 bytes), and a byte of signs (32); the indices' high two bits (8 bytes); for each 16 elements a factor of 4 bits,
// low nibble first. value = level * (d * (factor + 1/2) / 4). Reference: gguf/quants.py, class IQ2_S.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq2S {
    static constexpr std::string_view kName = "iq2_s";
    static constexpr int kElements = 256, kBytes = 82, kScaled = 16;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq2Levels;

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq2_s_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const int index = block[2 + i] | ((block[66 + i / 4] >> (i % 4 * 2)) & 3) << 8;
            storage::signed_codes(grid[size_t(index)], block[34 + i], 3, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 16; g++) scales[g] = d * (0.5f + float((block[74 + g / 2] >> (g % 2 * 4)) & 15)) * 0.25f;
    }
};

}  // namespace

const Codebook4& iq2_s_storage() {
    static const storage::GgmlCodebook<Iq2S> instance;
    return instance;
}

}  // namespace halfbyte
