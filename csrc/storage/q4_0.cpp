// GGUF Q4_0. Plane 0: [rows, cols / 32] blocks of 18 bytes: scale f16, then 16 bytes; byte j holds element j in its low and
// element j + 16 in its high nibble. value = (code - 8) * scale. Reference: gguf/quants.py, class Q4_0.
#include <array>
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr int kBlock = 32;
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
        for (int64_t b = 0; b < weight.cols / kBlock; b++, out += kBlock) {
            const uint8_t* block = block_at(weight, row, b);
            const float scale = scale_of(block);
            for (int j = 0; j < kBlock / 2; j++) {
                out[j] = kLevels[block[2 + j] & 15] * scale;
                out[j + 16] = kLevels[block[2 + j] >> 4] * scale;
            }
        }
    }

    void unpack_row(const Weight& weight, int64_t row, uint8_t* codes, float* scales, float*) const override {
        for (int64_t b = 0; b < weight.cols / kBlock; b++, codes += kBlock) {
            const uint8_t* block = block_at(weight, row, b);
            scales[b] = scale_of(block);
            for (int j = 0; j < kBlock / 2; j++) {
                codes[j] = block[2 + j] & 15;
                codes[j + 16] = block[2 + j] >> 4;
            }
        }
    }

private:
    static const uint8_t* block_at(const Weight& weight, int64_t row, int64_t b) {
        return weight.planes[0].as<uint8_t>() + (row * (weight.cols / kBlock) + b) * kBlockBytes;
    }
    static float scale_of(const uint8_t* block) {
        uint16_t bits;
        std::memcpy(&bits, block, sizeof bits);
        return f16_to_f32(bits);
    }
};

}  // namespace

const Codebook4& q4_0_storage() {
    static const Q40Storage storage;
    return storage;
}

}  // namespace halfbyte
