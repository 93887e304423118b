// GGUF Q4_1. Plane 0: [rows, cols / 32] blocks of 20 bytes: scale f16, offset f16, then 16 bytes; byte j holds element j in
// its low and element j + 16 in its high nibble. value = code * scale + offset, two float32 roundings. Reference:
// gguf/quants.py, class Q4_1.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q41 {
    static constexpr std::string_view kName = "q4_1";
    static constexpr int kElements = 32, kBytes = 20, kScaled = 32;
    static constexpr bool kOffsets = true;
    static constexpr std::array<float, 16> kLevels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<16>(block + 4, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float* offsets) {
        scales[0] = storage::half_at(block);
        offsets[0] = storage::half_at(block + 2);
    }
};

}  // namespace

const Codebook4& q4_1_storage() {
    static const storage::GgmlCodebook<Q41> instance;
    return instance;
}

}  // namespace halfbyte
