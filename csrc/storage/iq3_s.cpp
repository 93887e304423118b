// GGUF IQ3_S. Plane 0: [rows, cols / 256] blocks of 110 bytes: unit f16; for each 4 elements the low byte of an index into a grid of
// vectors of 4 (64 bytes), then the indices' ninth bits (8 bytes), then a sign for every element (32 bytes); for each 32 elements a
// factor of 4 bits, low nibble first. value = level * (d * (1 + 2 * factor)). Reference: gguf/quants.py, class IQ3_S.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq3S {
    static constexpr std::string_view kName = "iq3_s";
    static constexpr int kElements = 256, kBytes = 110, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr std::array<float, 16> kLevels = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15};

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq3_s_grid();
        for (int i = 0; i < 64; i++, codes += 4) {
            const int index = block[2 + i] | ((block[66 + i / 8] >> (i % 8)) & 1) << 8;
            storage::signed_codes(grid[size_t(index)], block[74 + i / 2] >> (i % 2 * 4), 8, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 8; g++) scales[g] = d * float(1 + 2 * ((block[106 + g / 2] >> (g % 2 * 4)) & 15));
    }
};

}  // namespace

const Codebook4& iq3_s_storage() {
    static const storage::GgmlCodebook<Iq3S> instance;
    return instance;
}

}  // namespace halfbyte
