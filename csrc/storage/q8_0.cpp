// GGUF Q8_0. Plane 0: [rows, cols / 32] blocks of 34 bytes: scale f16, then 32 signed bytes. value = level * scale.
// Reference: gguf/quants.py, class Q8_0.
#include <cstring>

#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr int kBlock = 32;
constexpr int kBlockBytes = 34;

class Q80Storage final : public Int8Blocks {
public:
    std::string_view name() const override { return "q8_0"; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_blocks_of_32(weight, kBlockBytes, where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        for (int64_t b = 0; b < weight.cols / kBlock; b++, out += kBlock) {
            const uint8_t* block = block_at(weight, row, b);
            const float scale = scale_of(block);
            for (int j = 0; j < kBlock; j++) out[j] = float(int8_t(block[2 + j])) * scale;
        }
    }

    void unpack_row(const Weight& weight, int64_t row, int8_t* levels, float* scales) const override {
        for (int64_t b = 0; b < weight.cols / kBlock; b++, levels += kBlock) {
            const uint8_t* block = block_at(weight, row, b);
            scales[b] = scale_of(block);
            std::memcpy(levels, block + 2, kBlock);
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

const Int8Blocks& q8_0_storage() {
    static const Q80Storage storage;
    return storage;
}

}  // namespace halfbyte
