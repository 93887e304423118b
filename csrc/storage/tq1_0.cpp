// GGUF TQ1_0: digits of base 3. Plane 0: [rows, cols / 256] blocks of 54 bytes: 32 bytes of 5 elements, 16 bytes of 5, 4 bytes
// of 4, then scale f16. Of b bytes, byte j holds the elements n b + j; digit n of a byte is the high part of 3 * (byte * 3^n mod
// 256). value = (digit - 1) * scale. Reference: gguf/quants.py, class TQ1_0.
#include <array>

#include "storage/ggml_blocks.h"

namespace halfbyte {

namespace {

struct Tq10 {
    static constexpr std::string_view kName = "tq1_0";
    static constexpr int kElements = 256, kBytes = 54, kScaled = 256;
    static constexpr bool kOffsets = false;
    static constexpr std::array<float, 16> kLevels = {-1, 0, 1};

    static void codes(const uint8_t* block, uint8_t* codes) {
        const auto take = [&](int bytes, int digits) {
            for (int n = 0, power = 1; n < digits; n++, power *= 3)
                for (int j = 0; j < bytes; j++) *codes++ = uint8_t(uint8_t(block[j] * power) * 3 >> 8);
            block += bytes;
        };
        take(32, 5), take(16, 5), take(4, 4);
    }
    static void scales(const uint8_t* block, float* scales, float*) { scales[0] = storage::half_at(block + 52); }
};

}  // namespace

const Codebook4& tq1_0_storage() {
    static const storage::GgmlCodebook<Tq10> instance;
    return instance;
}

}  // namespace halfbyte
