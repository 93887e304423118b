// GGUF Q4_1. Plane 0: [rows, cols / 32] blocks of 20 bytes: scale f16, offset f16, then 16 bytes; byte j holds element j in
// its low and element j + 16 in its high nibble. value = code * scale + offset, two float32 roundings. Reference:
// gguf/quants.py, class Q4_1.
#include <array>

#include "storage/checks.h"
#include "storage/ggml_blocks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using storage::ggml_block, storage::half_at, storage::kGgmlBlock;

constexpr int kBlockBytes = 20;
constexpr std::array<float, 16> kLevels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

class Q41Storage final : public Codebook4 {
public:
    std::string_view name() const override { return "q4_1"; }
    bool has_offsets() const override { return true; }
    std::span<const float, 16> levels(const Weight&) const override { return kLevels; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_blocks_of_32(weight, kBlockBytes, where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, out += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            const float scale = half_at(block);
            const float offset = half_at(block + 2);
            for (int j = 0; j < kGgmlBlock / 2; j++) {
                out[j] = kLevels[block[4 + j] & 15] * scale + offset;
                out[j + 16] = kLevels[block[4 + j] >> 4] * scale + offset;
            }
        }
    }

    void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float* offsets) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, codes += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            scales[b] = half_at(block);
            offsets[b] = half_at(block + 2);
            storage::unpack_ggml_nibbles(block + 4, codes);
        }
    }
};

}  // namespace

const Codebook4& q4_1_storage() {
    static const Q41Storage instance;
    return instance;
}

}  // namespace halfbyte
