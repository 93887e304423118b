// GGUF NVFP4. Plane 0: [rows, cols / 64] blocks of 36 bytes: 4 scales in unsigned e4m3, then for each 16 elements 8 bytes; byte j
// holds element j in its low and element j + 8 in its high nibble. value = levels[code] * (scale / 2), levels those of e2m1
// doubled; the byte 0x7f is a scale of zero. Reference: gguf/quants.py, class NVFP4.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Nvfp4 {
    static constexpr std::string_view kName = "nvfp4";
    static constexpr int kElements = 64, kBytes = 36, kScaled = 16;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kE2m1Levels;

    static void codes(const uint8_t* block, uint8_t* codes) {
        for (int i = 0; i < kElements; i++) codes[i] = (block[4 + i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4)) & 15;
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        for (int g = 0; g < 4; g++) {
            const int exponent = (block[g] >> 3) & 15, mantissa = block[g] & 7;
            const float raw =
                exponent == 0 ? float(mantissa) * 0x1p-9f : std::ldexp(1.0f + float(mantissa) / 8.0f, exponent - 7);
            scales[g] = block[g] == 0x7f ? 0.0f : raw * 0.5f;
        }
    }
};

}  // namespace

const Codebook4& nvfp4_storage() {
    static const storage::GgmlCodebook<Nvfp4> instance;
    return instance;
}

}  // namespace halfbyte
