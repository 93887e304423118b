// GGUF IQ4_NL. Plane 0: [rows, cols / 32] blocks of 18 bytes: scale f16, then 16 bytes as in Q4_0. value = levels[code] * scale.
// Reference: gguf/quants.py, class IQ4_NL.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Iq4Nl {
    static constexpr std::string_view kName = "iq4_nl";
    static constexpr int kElements = 32, kBytes = 18, kScaled = 32;
    static constexpr bool kOffsets = false;
    static constexpr const std::array<float, 16>& kLevels = storage::kIq4Levels;

    static void codes(const uint8_t* block, uint8_t* codes) { storage::unpack_ggml_runs<16>(block + 2, kElements, codes); }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block); }
};

}  // namespace

const Codebook4& iq4_nl_storage() {
    static const storage::GgmlCodebook<Iq4Nl> instance;
    return instance;
}

}  // namespace halfbyte
