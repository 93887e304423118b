// What Python does not reach: unpacked rows and reordered rows hold the values of decoded ones.
#include "storage/storage.h"

#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "storage/encode.h"

using namespace halfbyte;

namespace {

/// [rows, cols] values from -4 to 4, of different size from row to row.
std::vector<float> values(int64_t rows, int64_t cols) {
    std::vector<float> result(static_cast<size_t>(rows * cols));
    uint32_t state = 1;
    for (size_t i = 0; i < result.size(); i++) {
        state = state * 1664525u + 1013904223u;
        result[i] = float(int32_t(state)) * 0x1p-29f / float(1 + i / size_t(cols) % 7);
    }
    return result;
}

Weight encoded(std::string_view format, int64_t rows, int64_t cols, int block_size, bool double_quant) {
    ThreadPool pool(1);
    return encode(values(rows, cols).data(), rows, cols, {format, block_size, double_quant}, pool);
}

std::vector<float> decoded(const Weight& weight) {
    std::vector<float> result(static_cast<size_t>(weight.size()));
    decode(weight, result.data());
    return result;
}

bool equal_bits(const float* a, const float* b, int64_t count) {
    return std::memcmp(a, b, size_t(count) * sizeof(float)) == 0;
}

/// A GGUF weight of arbitrary bytes: scales and offsets are moderate, codes are anything.
Weight blocks(const Storage& storage, int64_t rows, int64_t cols, size_t block_bytes, size_t halves) {
    Weight weight;
    weight.rows = rows;
    weight.cols = cols;
    weight.storage = &storage;
    weight.block_size = 32;
    weight.planes[0] = allocate_plane(size_t(rows * cols / 32) * block_bytes);
    auto* bytes = const_cast<uint8_t*>(weight.planes[0].as<uint8_t>());
    for (size_t i = 0; i < weight.planes[0].bytes; i++) {
        bytes[i] = uint8_t(i * 89 + i / 7);
        if (i % block_bytes < 2 * halves && i % 2 == 1) bytes[i] = uint8_t(0x30 + i % 8);
    }
    storage.validate(weight, "test");
    return weight;
}

void check_reordered(const Weight& weight) {
    const std::vector<float> before = decoded(weight);
    std::vector<int64_t> order;
    for (int64_t row = 0; row < weight.rows; row++) order.push_back((row * 5 + 3) % weight.rows);
    const Weight moved = reorder_rows(weight, order);
    moved.storage->validate(moved, "reordered");
    const std::vector<float> after = decoded(moved);
    for (size_t i = 0; i < order.size(); i++) {
        CHECK(equal_bits(&after[i * size_t(weight.cols)], &before[size_t(order[i] * weight.cols)], weight.cols));
    }
    // Fewer rows, one of them twice.
    const std::vector<int64_t> some = {weight.rows - 1, 0, weight.rows - 1};
    const Weight part = reorder_rows(weight, some);
    CHECK(part.rows == 3 &&
          equal_bits(&decoded(part)[size_t(2 * weight.cols)], &before[size_t(some[2] * weight.cols)], weight.cols));
}

void check_unpacked(const Weight& weight) {
    const std::vector<float> expected = decoded(weight);
    const auto per_row = size_t(weight.cols / weight.block_size);
    const auto cols = size_t(weight.cols);
    std::vector<float> scales(per_row), offsets(per_row);
    for (int64_t row = 0; row < weight.rows; row++) {
        std::vector<float> row_values(cols);
        if (const auto* codebook = dynamic_cast<const Codebook4*>(weight.storage)) {
            std::vector<uint8_t> codes(cols);
            codebook->unpack_row(weight, row, codes.data(), scales.data(),
                                 codebook->has_offsets() ? offsets.data() : nullptr);
            const auto levels = codebook->levels(weight);
            for (size_t i = 0; i < codes.size(); i++) {
                CHECK(codes[i] < 16);
                const size_t block = i / size_t(weight.block_size);
                row_values[i] = levels[codes[i]] * scales[block];
                if (codebook->has_offsets()) row_values[i] += offsets[block];
            }
        } else {
            std::vector<int8_t> levels(cols);
            dynamic_cast<const Int8Blocks&>(*weight.storage).unpack_row(weight, row, levels.data(), scales.data());
            for (size_t i = 0; i < levels.size(); i++) {
                row_values[i] = float(levels[i]) * scales[i / size_t(weight.block_size)];
            }
        }
        CHECK(equal_bits(row_values.data(), &expected[size_t(row * weight.cols)], weight.cols));
    }
}

}  // namespace

TEST(rows_of_bitsandbytes_weights) {
    for (const std::string_view format : {"nf4", "fp4"}) {
        for (const bool double_quant : {false, true}) {
            // 111 rows of 6 blocks: a row's scales lie in two nested blocks of 256.
            for (const Weight& weight :
                 {encoded(format, 111, 384, 64, double_quant), encoded(format, 3, 4096, 4096, double_quant)}) {
                check_unpacked(weight);
                check_reordered(weight);
            }
        }
    }
}

TEST(rows_of_gguf_weights) {
    for (const Weight& weight : {blocks(q4_0_storage(), 7, 96, 18, 1), blocks(q4_1_storage(), 7, 96, 20, 2),
                                 blocks(q8_0_storage(), 7, 96, 34, 1), encoded("int8", 7, 64, 0, false)}) {
        check_unpacked(weight);
        check_reordered(weight);
    }
}

TEST(rows_of_floats) {
    for (const std::string_view format : {"f32", "f16", "bf16"}) check_reordered(encoded(format, 7, 33, 0, false));
}

TEST(rows_that_cannot_be_reordered) {
    const std::vector<int64_t> order = {1, 0};
    CHECK(check::contains(check::error_of([&] { reorder_rows(encoded("nf4", 2, 96, 64, true), order); }),
                          "blocks of 64 cross rows"));
    for (const int64_t row : {int64_t(-1), int64_t(2)}) {
        const std::vector<int64_t> outside = {row, 0};
        CHECK(check::contains(check::error_of([&] { reorder_rows(encoded("f32", 2, 4, 0, false), outside); }),
                              "of a weight with 2 rows"));
    }
}
