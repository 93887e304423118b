// GGUF Q4_K. Plane 0: [rows, cols / 256] blocks of 144 bytes: f16 units of factors and offsets, 12 bytes with 8 factors and 8
// offsets of 6 bits (k_scales), 128 bytes of codes; of 64 elements, byte l holds element l in its low and element l + 32 in its
// high nibble. value = code * (d * factor) - dmin * offset. Reference: gguf/quants.py, class Q4_K.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q4K {
    static constexpr std::string_view kName = "q4_k";
    static constexpr int kElements = 256, kBytes = 144, kScaled = 32;
    static constexpr bool kOffsets = true;
    static constexpr std::array<float, 16> kLevels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<32>(block + 16, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float* offsets) { storage::k_scales(block, scales, offsets); }
};

}  // namespace

const Codebook4& q4_k_storage() {
    static const storage::GgmlCodebook<Q4K> instance;
    return instance;
}

}  // namespace halfbyte
