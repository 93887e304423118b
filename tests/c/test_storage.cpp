// What Python does not reach: unpacked rows and reordered rows hold the values of decoded ones.
#include "storage/storage.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "io/ggml_types.h"
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

/// The same numbers: zeros of either sign are one.
bool equal(const std::vector<float>& a, const float* b) { return std::equal(a.begin(), a.end(), b); }

/// A GGUF weight of arbitrary bytes. None has the bits of an infinite or NaN float16 anywhere, so that scales are finite.
Weight blocks(const GgmlType& type, int64_t rows, int64_t blocks_a_row) {
    Weight weight;
    weight.rows = rows;
    weight.cols = blocks_a_row * type.block;
    weight.storage = type.storage();
    weight.block_size = weight.storage->block_size();
    weight.planes[0] = allocate_plane(size_t(rows * blocks_a_row) * size_t(type.bytes));
    auto* bytes = const_cast<uint8_t*>(weight.planes[0].as<uint8_t>());
    for (size_t i = 0; i < weight.planes[0].bytes; i++) {
        bytes[i] = uint8_t(i * 89 + i / 7);
        if ((bytes[i] & 0x7c) == 0x7c || bytes[i] >> 4 == 7 || bytes[i] >> 4 == 15) bytes[i] ^= 0x40;
    }
    weight.storage->validate(weight, "test");
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
            const auto& bytes = dynamic_cast<const Int8Blocks&>(*weight.storage);
            bytes.unpack_row(weight, row, levels.data(), scales.data(), bytes.has_offsets() ? offsets.data() : nullptr);
            for (size_t i = 0; i < levels.size(); i++) {
                const size_t block = i / size_t(weight.block_size);
                row_values[i] = float(levels[i]) * scales[block];
                if (bytes.has_offsets()) row_values[i] += offsets[block];
            }
        }
        CHECK(equal(row_values, &expected[size_t(row * weight.cols)]));
        weight.storage->check_scales(weight, row, "test");
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
    int formats = 0;
    for (const GgmlType& type : ggml_types()) {
        if (type.storage == nullptr) continue;
        const Weight weight = blocks(type, 7, 3);
        check_reordered(weight);
        if (type.block == 1) continue;  // floats
        check_unpacked(weight);
        formats++;
    }
    CHECK(formats >= 23);
    check_unpacked(encoded("int8", 7, 64, 0, false));
}

TEST(scales_that_are_no_numbers) {
    for (const GgmlType& type : ggml_types()) {
        if (type.storage == nullptr || type.block == 1) continue;
        Weight weight = blocks(type, 3, 2);
        // All ones: a float16's NaN, e8m0's NaN; but 240 in the scales of NVFP4, which gguf reads so.
        auto* bytes = const_cast<uint8_t*>(weight.planes[0].as<uint8_t>());
        std::memset(bytes + weight.planes[0].bytes / 6 * 3, 0xff, size_t(type.bytes));  // row 1, second block
        for (const int64_t row : {0, 2}) weight.storage->check_scales(weight, row, "test");
        if (type.name == "NVFP4") continue;
        const std::string error = check::error_of([&] { weight.storage->check_scales(weight, 1, "test"); });
        CHECK(check::contains(error, concat("test: the ")));
        CHECK(check::contains(error, concat("of row 1 from column ", type.block, " on is")));
    }
}

TEST(rows_of_int8) {
    Weight weight;
    weight.rows = 7, weight.cols = 64, weight.block_size = 64;
    weight.storage = &int8_rows_storage();
    weight.planes[kInt8RowsLevels] = allocate_plane(7 * 64);
    weight.planes[kInt8RowsScb] = allocate_plane(7 * sizeof(float));
    for (int i = 0; i < 7 * 64; i++) const_cast<int8_t*>(weight.planes[kInt8RowsLevels].as<int8_t>())[i] = int8_t(i * 89);
    auto* scb = const_cast<float*>(weight.planes[kInt8RowsScb].as<float>());
    for (int i = 0; i < 7; i++) scb[i] = 0.25f * float(i + 1);
    weight.storage->validate(weight, "test");
    check_reordered(weight);
    weight.storage->check_scales(weight, 3, "test");
    scb[3] = INFINITY;
    CHECK(check::contains(check::error_of([&] { weight.storage->check_scales(weight, 3, "test"); }), "row 3"));
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
