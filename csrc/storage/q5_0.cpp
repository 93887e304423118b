// GGUF Q5_0. Plane 0: [rows, cols / 32] blocks of 22 bytes: scale f16, 4 bytes with the fifth bit of every element (bit i:
// element i), then 16 bytes with the low four as in Q4_0. value = (code - 16) * scale. Reference: gguf/quants.py, class Q5_0.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q50 {
    static constexpr std::string_view kName = "q5_0";
    static constexpr int kElements = 32, kBytes = 22, kScaled = 32;
    static constexpr bool kOffsets = false;

    static void codes(const uint8_t* block, int8_t* levels) {
        storage::unpack_ggml_runs<16>(block + 6, kElements, levels);
        for (int i = 0; i < kElements; i++) levels[i] = int8_t((levels[i] | ((block[2 + i / 8] >> (i % 8)) & 1) << 4) - 16);
    }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block); }
};

}  // namespace

const Int8Blocks& q5_0_storage() {
    static const storage::GgmlInt8<Q50> instance;
    return instance;
}

}  // namespace halfbyte
