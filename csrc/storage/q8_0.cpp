// GGUF Q8_0. Plane 0: [rows, cols / 32] blocks of 34 bytes: scale f16, then 32 signed bytes. value = level * scale.
// Reference: gguf/quants.py, class Q8_0.
#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Q80 {
    static constexpr std::string_view kName = "q8_0";
    static constexpr int kElements = 32, kBytes = 34, kScaled = 32;
    static constexpr bool kOffsets = false;

    static void codes(const uint8_t* block, int8_t* levels) { std::memcpy(levels, block + 2, kElements); }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block); }
};

}  // namespace

const Int8Blocks& q8_0_storage() {
    static const storage::GgmlInt8<Q80> instance;
    return instance;
}

}  // namespace halfbyte
