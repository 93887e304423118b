// GGUF MXFP4 (OCP microscaling). Plane 0: [rows, cols / 32] blocks of 17 bytes: the scale, a power of two as a biased exponent,
// then 16 bytes as in Q4_0. value = levels[code] * 2^(e - 128): the levels are those of e2m1 doubled, the scale is half of e8m0.
// Reference: gguf/quants.py, class MXFP4.
#include <array>

#include <bit>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Mxfp4 {
    static constexpr std::string_view kName = "mxfp4";
    static constexpr int kElements = 32, kBytes = 17, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kE2m1Levels;

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<16>(block + 1, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float*) {
        const uint32_t e = block[0];
        scales[0] = std::bit_cast<float>(e < 2 ? uint32_t(0x00200000) << e : (e - 1) << 23);
    }
    static const char* fault(const uint8_t* block) { return block[0] == 255 ? "255 (e8m0's NaN)" : nullptr; }
};

}  // namespace

const Codebook4& mxfp4_storage() {
    static const storage::GgmlCodebook<Mxfp4> instance;
    return instance;
}

}  // namespace halfbyte
