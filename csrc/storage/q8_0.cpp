// GGUF Q8_0. Plane 0: [rows, cols / 32] blocks of 34 bytes: scale f16, then 32 signed bytes. value = level * scale.
// Reference: gguf/quants.py, class Q8_0.
#include <cstring>

#include "storage/checks.h"
#include "storage/ggml_blocks.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using storage::ggml_block, storage::half_at, storage::kGgmlBlock;

constexpr int kBlockBytes = 34;

class Q80Storage final : public Int8Blocks {
public:
    std::string_view name() const override { return "q8_0"; }

    void validate(const Weight& weight, std::string_view where) const override {
        storage::check_blocks_of_32(weight, kBlockBytes, where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, out += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            const float scale = half_at(block);
            for (int j = 0; j < kGgmlBlock; j++) out[j] = float(int8_t(block[2 + j])) * scale;
        }
    }

    void unpack_row(const Weight& weight, int64_t row, int8_t* levels, float* scales) const override {
        for (int64_t b = 0; b < weight.cols / kGgmlBlock; b++, levels += kGgmlBlock) {
            const uint8_t* block = ggml_block(weight, kBlockBytes, row, b);
            scales[b] = half_at(block);
            std::memcpy(levels, block + 2, kGgmlBlock);
        }
    }
};

}  // namespace

const Int8Blocks& q8_0_storage() {
    static const Q80Storage instance;
    return instance;
}

}  // namespace halfbyte
