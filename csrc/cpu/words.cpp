#include "cpu/words.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"

namespace halfbyte::cpu {

namespace {

constexpr int64_t kBlock = 32;
constexpr int kLargestWord = 32767;

/// The greatest u of which all values[count] are whole multiples; 0 where all of them are zero. They are finite.
double common_unit(const float* values, int64_t count) {
    // Every value is odd * 2^exponent with an odd integer. So is the unit: the odd parts' common divisor, the least exponent.
    uint32_t odd = 0;
    int exponent = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
        if (bits == 0) continue;
        const bool normal = bits >= 0x00800000u;
        uint32_t own = normal ? (bits & 0x007fffffu) | 0x00800000u : bits;
        const int zeros = std::countr_zero(own), own_exponent = (normal ? int(bits >> 23) : 1) - 150 + zeros;
        own >>= zeros;
        exponent = odd == 0 ? own_exponent : std::min(exponent, own_exponent);
        odd = odd == own ? odd : std::gcd(odd, own);
    }
    return std::ldexp(double(odd), exponent);
}

}  // namespace

bool round_row(const float* values, int64_t cols, int64_t block, int16_t* words, float* scales) {
    const double most = double(kWordSum - block / 2 - 1);  // before each of them may be rounded up by a half

    for (int64_t b = 0; b < cols / block; b++, values += block, words += block) {
        double peak = 0, sum = 0;
        for (int64_t i = 0; i < block; i++) {
            if (!std::isfinite(values[i])) return false;
            peak = std::max(peak, std::fabs(double(values[i]))), sum += std::fabs(double(values[i]));
        }
        scales[b] = float(std::max(peak / kLargestWord, sum / most));
        // Rounded against the stored scale, which may be subnormal; in float64, where its inverse is finite.
        const double inverse = scales[b] == 0 ? 0 : 1.0 / double(scales[b]);
        for (int64_t i = 0; i < block; i++)
            words[i] = int16_t(
                std::clamp(std::nearbyint(double(values[i]) * inverse), double(-kLargestWord), double(kLargestWord)));
    }
    return true;
}

bool FineRows::fits(const Weight& weight) {
    const StorageKind kind = weight.storage->kind();
    return (kind == StorageKind::codebook4 || kind == StorageKind::int8_blocks) && weight.block_size > 0 &&
           weight.block_size < kBlock && kBlock % weight.block_size == 0;
}

FineRows::FineRows(const Weight& weight) : weight_(weight) {
    if (weight.storage->kind() == StorageKind::int8_blocks) {
        bytes_ = static_cast<const Int8Blocks*>(weight.storage);
        offsets_ = bytes_->has_offsets();
        return;
    }
    codebook_ = static_cast<const Codebook4*>(weight.storage);
    offsets_ = codebook_->has_offsets();
    const auto levels = codebook_->levels(weight);
    const double unit = common_unit(levels.data(), 16);
    level_unit_ = float(unit);
    for (size_t i = 0; i < 16 && unit > 0; i++) {
        const double level = double(levels[i]) / unit;
        levels_[i] = std::fabs(level) < 32768 ? int(level) : 32768;  // too many for a word: never exact
    }
}

bool FineRows::read(int64_t row, int16_t* words, float* scales) const {
    const auto cols = size_t(weight_.cols);
    const int64_t own = weight_.block_size, each = kBlock / own;
    std::vector<int8_t> bytes(bytes_ != nullptr ? cols : 0);
    std::vector<uint8_t> codes(codebook_ != nullptr ? cols : 0);
    std::vector<float> own_scales(cols / size_t(own)), offsets(own_scales.size()), values;
    if (codebook_ != nullptr)
        codebook_->unpack_row(weight_, row, codes.data(), own_scales.data(), offsets.data());
    else
        bytes_->unpack_row(weight_, row, bytes.data(), own_scales.data(), offsets.data());
    const auto round = [&](int64_t from, int64_t count) {
        if (values.empty()) {
            values.resize(cols);
            weight_.storage->decode_row(weight_, row, values.data());
        }
        return round_row(values.data() + from, count, kBlock, words + from, scales + from / kBlock);
    };
    if (offsets_) return round(0, weight_.cols);
    for (int64_t b = 0; b < weight_.cols / kBlock; b++) {
        const float* group = own_scales.data() + b * each;
        for (int64_t g = 0; g < each; g++)
            if (!std::isfinite(group[g])) return false;
        const double unit = common_unit(group, each);
        scales[b] = float(unit * double(level_unit_));
        bool exact = double(scales[b]) == unit * double(level_unit_);
        double magnitudes = 0;
        for (int64_t g = 0; g < each && exact; g++) {
            const int64_t first = b * kBlock + g * own;
            int levels[kBlock], largest = 0;
            for (int64_t k = 0; k < own; k++) {
                levels[k] = codebook_ != nullptr ? levels_[codes[size_t(first + k)]] : bytes[size_t(first + k)];
                largest = std::max(largest, std::abs(levels[k]));
            }
            // Without a level the scale may be anything, also beyond what an integer holds.
            const double factor = unit == 0 || largest == 0 ? 0 : double(group[g]) / unit;
            exact = std::fabs(factor) * largest <= kLargestWord;
            for (int64_t k = 0; k < own && exact; k++) {
                words[first + k] = int16_t(levels[k] * int(factor));
                magnitudes += std::abs(int(words[first + k]));
            }
            exact = exact && magnitudes <= kWordSum;
        }
        if (!exact && !round(b * kBlock, kBlock)) return false;
    }
    return true;
}

}  // namespace halfbyte::cpu
