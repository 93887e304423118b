// GGUF Q6_K. Plane 0: [rows, cols / 256] blocks of 210 bytes: 128 bytes with the low four bits (of 128 elements, byte j of 64
// holds element j in its low and element j + 64 in its high nibble), 64 bytes with the high two as in Q2_K, 16 signed factors,
// unit f16. value = (code - 32) * (d * factor). Reference: gguf/quants.py, class Q6_K.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q6K {
    static constexpr std::string_view kName = "q6_k";
    static constexpr int kElements = 256, kBytes = 210, kScaled = 16;
    static constexpr bool kOffsets = false;

    static void codes(const uint8_t* block, int8_t* levels) {
        int8_t high[kElements];
        storage::unpack_ggml_pairs(block + 128, kElements, high);
        storage::unpack_ggml_runs<64>(block, kElements, levels);
        for (int i = 0; i < kElements; i++) levels[i] = int8_t((levels[i] | high[i] << 4) - 32);
    }
    static void scales(const uint8_t* block, float* scales, float*) {
        const float d = storage::half_at(block + 208);
        for (int g = 0; g < 16; g++) scales[g] = d * float(int8_t(block[192 + g]));
    }
};

}  // namespace

const Int8Blocks& q6_k_storage() {
    static const storage::GgmlInt8<Q6K> instance;
    return instance;
}

}  // namespace halfbyte
