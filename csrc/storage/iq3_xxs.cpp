// GGUF IQ3_XXS. Plane 0: [rows, cols / 256] blocks of 98 bytes: unit f16; for each 4 elements an index into a grid of vectors of 4
// (64 bytes); for each 32 elements a u32: 4 times 7 signs of 8 elements (even_signs), and in its top four bits the factor. value =
// level * (d * (factor + 1/2) / 2). Reference: gguf/quants.py, class IQ3_XXS.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq3Xxs {
    static constexpr std::string_view kName = "iq3_xxs";
    static constexpr int kElements = 256, kBytes = 98, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr std::array<float, 16> kLevels = {4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62};

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq3_xxs_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const unsigned seven = (storage::word_at(block + 66 + i / 4 * 4) >> (i % 4 * 7)) & 127;
            const unsigned signs = storage::even_signs(seven);
            storage::signed_codes(grid[block[2 + 2 * i]], signs, 8, codes);
            storage::signed_codes(grid[block[3 + 2 * i]], signs >> 4, 8, codes + 4);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 8; g++) scales[g] = d * (0.5f + float(storage::word_at(block + 66 + 4 * g) >> 28)) * 0.5f;
    }
};

}  // namespace

const Codebook4& iq3_xxs_storage() {
    static const storage::GgmlCodebook<Iq3Xxs> instance;
    return instance;
}

}  // namespace halfbyte
