// GGUF TQ2_0. Plane 0: [rows, cols / 256] blocks of 66 bytes: 64 bytes of codes as in Q2_K, then scale f16. value = (code - 1) *
// scale. Reference: gguf/quants.py, class TQ2_0.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Tq20 {
    static constexpr std::string_view kName = "tq2_0";
    static constexpr int kElements = 256, kBytes = 66, kScaled = 256;
    static constexpr bool kOffsets = false;
    static constexpr std::array<float, 16> kLevels = {-1, 0, 1, 2};

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_pairs(block, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block + 64); }
};

}  // namespace

const Codebook4& tq2_0_storage() {
    static const storage::GgmlCodebook<Tq20> instance;
    return instance;
}

}  // namespace halfbyte
