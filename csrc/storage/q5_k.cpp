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
        storage::unpack_ggml_runs<32>(block + 48, kElements, levels);
        for (int bit = 0; bit < 8; bit++, levels += 32)
            for (int l = 0; l < 32; l++) levels[l] = int8_t(levels[l] | ((block[16 + l] >> bit) & 1) << 4);
    }
    static void scales(const uint8_t* block, float* scales, float* offsets) { storage::k_scales(block, scales, offsets); }
};

}  // namespace

const Int8Blocks& q5_k_storage() {
    static const storage::GgmlInt8<Q5K> instance;
    return instance;
}

}  // namespace halfbyte
