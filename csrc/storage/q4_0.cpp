// GGUF Q4_0. Plane 0: [rows, cols / 32] blocks of 18 bytes: scale f16, then 16 bytes; byte j holds element j in its low and
// element j + 16 in its high nibble. value = (code - 8) * scale. Reference: gguf/quants.py, class Q4_0.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q40 {
    static constexpr std::string_view kName = "q4_0";
    static constexpr int kElements = 32, kBytes = 18, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr std::array<float, 16> kLevels = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<16>(block + 2, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block); }
};

}  // namespace

const Codebook4& q4_0_storage() {
    static const storage::GgmlCodebook<Q40> instance;
    return instance;
}

}  // namespace halfbyte
