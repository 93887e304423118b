// GGUF IQ2_XXS. Plane 0: [rows, cols / 256] blocks of 66 bytes: unit f16, then for each 32 elements 4 bytes that are indices into
// a grid of vectors of 8, and a u32: 4 times 7 signs (even_signs), and in its top four bits the factor. value = level * (d *
// (factor + 1/2) / 4). Reference: gguf/quants.py, class IQ2_XXS.
#include "storage/ggml_blocks.h"
#include "storage/iq_grids.h"

namespace halfbyte {

namespace {

struct Iq2Xxs {
    static constexpr std::string_view kName = "iq2_xxs";
    static constexpr int kElements = 256, kBytes = 66, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq2Levels;

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto& grid = storage::iq2_xxs_grid();
        for (int i = 0; i < 32; i++, codes += 8) {
            const uint8_t* group = block + 2 + i / 4 * 8;
            const unsigned signs = (storage::word_at(group + 4) >> (i % 4 * 7)) & 127;
            storage::signed_codes(grid[group[i % 4]], storage::even_signs(signs), 3, codes);
        }
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block);
        for (int g = 0; g < 8; g++) scales[g] = d * (0.5f + float(storage::word_at(block + 6 + 8 * g) >> 28)) * 0.25f;
    }
};

}  // namespace

const Codebook4& iq2_xxs_storage() {
    static const storage::GgmlCodebook<Iq2Xxs> instance;
    return instance;
}

}  // namespace halfbyte
