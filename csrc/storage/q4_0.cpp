// GGUF Q4_0. Plane 0: [rows, cols / 32] blocks of 18 bytes: scale f16, then 16 bytes; byte j holds element j in its low and
// element j + 16 in its high nibble. value = (code - 8) * scale. Reference: gguf/quants.py, class Q4_0.
#include <array>

#include "storage/checks.h"
#include "storage/ggml_blocks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using storage::ggml_block, storage::half_at, storage::kGgmlBlock;

constexpr int kBlockBytes = 18;
constexpr std::array<float, 16> kLevels = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

class Q40Storage final : public Codebook4 {
public:
    std::string_view name() const override { return "q4_0"; }
    bool has_offsets() const override { return false; }
    std::span<const float, 16> levels(const Weight&) const override { return kLevels; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_blocks_of_32(weight, kBlockBytes, where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, out += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            const float scale = half_at(block);
            for (int j = 0; j < kGgmlBlock / 2; j++) {
                out[j] = kLevels[block[2 + j] & 15] * scale;
                out[j + 16] = kLevels[block[2 + j] >> 4] * scale;
            }
        }
    }

    void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float*) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, codes += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            scales[b] = half_at(block);
            storage::unpack_ggml_nibbles(block + 2, codes);
        }
    }
};

}  // namespace

const Codebook4& q4_0_storage() {
    static const Q40Storage instance;
    return instance;
}

}  // namespace halfbyte
