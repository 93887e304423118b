// What the GGUF block formats share. A file of a format says how one of its blocks is taken apart; the rest is here. Private
// to storage/.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "core/error.h"
#include "core/weight.h"
#include "storage/checks.h"
#include "storage/storage.h"

namespace halfbyte::storage {

/// The float16 at `block`, which need not be aligned.
inline float half_at(const uint8_t* block) {
    uint16_t bits;
    std::memcpy(&bits, block, sizeof bits);
    return f16_to_f32(bits);
}

/// The u32 at `block`, which need not be aligned.
inline uint32_t word_at(const uint8_t* block) {
    uint32_t word;
    std::memcpy(&word, block, sizeof word);
    return word;
}

/// bytes[elements / 4] to codes[elements]: of 128 elements, element 32 s + l is bits 2 s and 2 s + 1 of byte l.
template <class Code>
void unpack_ggml_pairs(const uint8_t* packed, int elements, Code* codes) {
    for (int first = 0; first < elements; first += 128, packed += 32)
        for (int shift = 0; shift < 8; shift += 2, codes += 32)
            for (int l = 0; l < 32; l++) codes[l] = Code((packed[l] >> shift) & 3);
}

/// bytes[elements / 2] to codes[elements]: of 2 * kRun elements, byte l holds element l in its low and element l + kRun in its high
/// nibble.
template <int kRun, class Code>
void unpack_ggml_runs(const uint8_t* packed, int elements, Code* codes) {
    for (int first = 0; first < elements; first += 2 * kRun, packed += kRun, codes += 2 * kRun)
        for (int l = 0; l < kRun; l++) codes[l] = Code(packed[l] & 15), codes[l + kRun] = Code(packed[l] >> 4);
}

/// IQ4_NL and IQ4_XS.
constexpr std::array<float, 16> kIq4Levels = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
/// MXFP4 and NVFP4: e2m1, doubled.
constexpr std::array<float, 16> kE2m1Levels = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// The head of Q4_K and Q5_K: units d and dmin (f16), then 12 bytes. Factors and offsets 0 .. 3 are the low six bits of bytes 0 ..
/// 3 and 4 .. 7; numbers 4 .. 7 have their low four bits in bytes 8 .. 11 (factor low, offset high), their high two above those
/// six. scales, offsets: [8].
inline void k_scales(const uint8_t* block, float* scales, float* offsets) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t* packed = block + 4;
    for (int g = 0; g < 4; g++) {
        scales[g] = d * float(packed[g] & 63);
        offsets[g] = -(dmin * float(packed[g + 4] & 63));
        scales[g + 4] = d * float((packed[g + 8] & 15) | (packed[g] >> 6) << 4);
        offsets[g + 4] = -(dmin * float(packed[g + 8] >> 4 | (packed[g + 4] >> 6) << 4));
    }
}

/// A format: plane 0 holds [rows, cols / kElements] blocks of kBytes, and kScaled elements share a scale. Its file defines
///   static constexpr std::string_view kName;
///   static constexpr int kElements, kBytes, kScaled;
///   static constexpr bool kOffsets;
///   static void scales(const uint8_t* block, float* scales, float* offsets);   each [kElements / kScaled]
///   static void codes(const uint8_t* block, Code* codes);                      [kElements]
/// where Code is uint8_t and an index into `static constexpr std::array<float, 16> kLevels` for a Codebook4, int8_t and the
/// level itself for Int8Blocks. It may define
///   static void decode(const uint8_t* block, float* out);   where level * scale + offset is not the reference's own order
///   static const char* fault(const uint8_t* block);         null, or what no scale may be although its number is finite
template <class Base, class Format>
class GgmlStorage : public Base {
public:
    static constexpr int kGroups = Format::kElements / Format::kScaled;
    using Code = std::conditional_t<std::is_same_v<Base, Codebook4>, uint8_t, int8_t>;

    std::string_view name() const override { return Format::kName; }
    int32_t block_size() const override { return Format::kScaled; }
    bool planes_are_rows() const override { return true; }
    bool has_offsets() const override { return Format::kOffsets; }

    void validate(const Weight& weight, std::string_view where) const override {
        const int64_t count = element_count(weight, where);
        if (weight.cols % Format::kElements != 0) {
            fail(ErrorCode::corrupt, where, ": rows of ", weight.cols, " elements are not a whole number of blocks of ",
                 Format::kElements);
        }
        if (weight.block_size != Format::kScaled) {
            fail(ErrorCode::corrupt, where, ": block size ", weight.block_size, ", expected ", Format::kScaled);
        }
        check_plane(weight, 0, "data", size_t(count / Format::kElements) * Format::kBytes, where);
    }

    void decode_row(const Weight& weight, int64_t row, float* out) const override {
        const uint8_t* block = first_block(weight, row);
        for (int64_t k = 0; k < weight.cols; k += Format::kElements, block += Format::kBytes, out += Format::kElements) {
            if constexpr (requires { Format::decode(block, out); }) {
                Format::decode(block, out);
            } else {
                Code codes[Format::kElements];
                float scales[kGroups], offsets[kGroups];
                Format::codes(block, codes);
                Format::scales(block, scales, offsets);
                for (int i = 0; i < Format::kElements; i++) {
                    const float product = level(codes[i]) * scales[i / Format::kScaled];
                    out[i] = Format::kOffsets ? product + offsets[i / Format::kScaled] : product;
                }
            }
        }
    }

    void unpack_row(const Weight& weight, int64_t row, Code* codes, float* scales, float* offsets) const override {
        const uint8_t* block = first_block(weight, row);
        for (int64_t k = 0; k < weight.cols; k += Format::kElements, block += Format::kBytes) {
            Format::codes(block, codes);
            Format::scales(block, scales, offsets);
            codes += Format::kElements, scales += kGroups;
            if constexpr (Format::kOffsets) offsets += kGroups;
        }
    }

    void check_scales(const Weight& weight, int64_t row, std::string_view where) const override {
        const uint8_t* block = first_block(weight, row);
        for (int64_t k = 0; k < weight.cols; k += Format::kElements, block += Format::kBytes) {
            float scales[kGroups], offsets[kGroups];
            Format::scales(block, scales, offsets);
            for (int g = 0; g < kGroups; g++) {
                if (!std::isfinite(scales[g])) fail_scale(where, row, k + g * Format::kScaled, "scale", scales[g]);
                if (Format::kOffsets && !std::isfinite(offsets[g]))
                    fail_scale(where, row, k + g * Format::kScaled, "offset", offsets[g]);
            }
            if constexpr (requires { Format::fault(block); }) {
                if (const char* fault = Format::fault(block); fault != nullptr) fail_scale(where, row, k, "scale", fault);
            }
        }
    }

private:
    static const uint8_t* first_block(const Weight& weight, int64_t row) {
        return weight.planes[0].as<uint8_t>() + row * (weight.cols / Format::kElements) * Format::kBytes;
    }
    static float level(Code code) {
        if constexpr (std::is_same_v<Base, Codebook4>)
            return Format::kLevels[code];
        else
            return float(code);
    }
};

template <class Format>
class GgmlCodebook final : public GgmlStorage<Codebook4, Format> {
public:
    std::span<const float, 16> levels(const Weight&) const override { return Format::kLevels; }
};

template <class Format>
class GgmlInt8 final : public GgmlStorage<Int8Blocks, Format> {};

}  // namespace halfbyte::storage
