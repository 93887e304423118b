// GGUF IQ1_M. Plane 0: [rows, cols / 256] blocks of 56 bytes: for each 8 elements the low byte of an index into a grid of vectors of 8
// (32 bytes) and a nibble with its high three bits and the sign of what is added to the digits (16 bytes); 4 u16 with, for each 16
// elements, a factor of 3 bits, and in their top nibbles the unit, a float16. value = (digit - 1 +- 1/8) * (d * (2 * factor + 1)).
// Reference: gguf/quants.py, class IQ1_M.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq1M {
    static constexpr std::string_view kName = "iq1_m";
    static constexpr int kElements = 256, kBytes = 56, kScaled = 16;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq1Levels;

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq1_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const int high = (block[32 + i / 2] >> (i % 2 * 4)) & 15;
            const int index = block[i] | (high & 7) << 8;
            storage::signed_codes(grid[size_t(index)], (high & 8) != 0 ? 255 : 0, 3, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const auto word = [&](int i) { return block[48 + 2 * i] | unsigned(block[49 + 2 * i]) << 8; };
        unsigned bits = 0;
        for (int i = 0; i < 4; i++) bits |= word(i) >> 12 << (4 * i);
        const float d = f16_to_f32(uint16_t(bits));
        for (int g = 0; g < 16; g++) scales[g] = d * float(2 * ((word(g / 4) >> (g % 4 * 3)) & 7) + 1);
    }
};

}  // namespace

const Codebook4& iq1_m_storage() {
    static const storage::GgmlCodebook<Iq1M> instance;
    return instance;
}

}  // namespace halfbyte
