// GGUF Q5_1. Plane 0: [rows, cols / 32] blocks of 24 bytes: scale f16, offset f16, 4 bytes with the fifth bit of every element
// (bit i: element i), then 16 bytes with the low four as in Q4_0. value = code * scale + offset, two float32 roundings.
// Reference: gguf/quants.py, class Q5_1.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q51 {
    static constexpr std::string_view kName = "q5_1";
    static constexpr int kElements = 32, kBytes = 24, kScaled = 32;
    static constexpr bool kOffsets = true;

    static void codes(const uint8_t* block, int8_t* levels) {
        storage::unpack_ggml_runs<16>(block + 8, kElements, levels);
        for (int i = 0; i < kElements; i++) levels[i] = int8_t(levels[i] | ((block[4 + i / 8] >> (i % 8)) & 1) << 4);
    }
    static void scales(const uint8_t* block, float* scales, float* offsets) {
        scales[0] = storage::half_at(block);
        offsets[0] = storage::half_at(block + 2);
    }
};

}  // namespace

const Int8Blocks& q5_1_storage() {
    static const storage::GgmlInt8<Q51> instance;
    return instance;
}

}  // namespace halfbyte
