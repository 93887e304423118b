// GGUF Q5_K. Plane 0: [rows, cols / 256] blocks of 176 bytes: as Q4_K, with 32 bytes between scales and codes that hold the
// fifth bit of every element (of element 32 i + l bit i of byte l). value = code * (d * factor) - dmin * offset. Reference:
// gguf/quants.py, class Q5_K.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q5K {
    static constexpr std::string_view kName = "q5_k";
    static constexpr int kElements = 256, kBytes = 176, kScaled = 32;
    static constexpr bool kOffsets = true;

    static void codes(const uint8_t* block, int8_t* levels) {
        for (int i = 0; i < kElements; i++) {
            const int low = (block[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15;
            levels[i] = int8_t(low | ((block[16 + i % 32] >> (i / 32)) & 1) << 4);
        }
    }
    static void scales(const uint8_t* block, float* scales, float* offsets) { storage::k_scales(block, scales, offsets); }
};

}  // namespace

const Int8Blocks& q5_k_storage() {
    static const storage::GgmlInt8<Q5K> instance;
    return instance;
}

}  // namespace halfbyte
