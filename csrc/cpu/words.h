// Weights as 16-bit levels: what is not kept as codes or bytes on its way into panels.
#pragma once

#include <cstdint>

#include "core/weight.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

/// The values of a float row as integers, words[cols], one scale a block, scales[cols / block]: magnitudes that add up to at most
/// kWordSum in a block. Their relative error (root of the mean square of a block) is at most block / (kWordSum * sqrt(12)), 2.1e-4
/// for blocks of 128, whatever the values: 1.7e-4 where they are spread like a normal distribution, less where few are large. False
/// where a value is not finite.
bool round_row(const float* values, int64_t cols, int64_t block, int16_t* words, float* scales);

/// Rows of a Codebook4 or Int8Blocks whose scales stand for less than 32 elements, in blocks of 32. Where the scales of such a
/// block are whole multiples n of one number, as those of most formats are, a word is level * n and exact. Otherwise, and where
/// the format has offsets, the values are rounded as those of a float row.
class FineRows {
public:
    static bool fits(const Weight& weight);
    explicit FineRows(const Weight& weight);  ///< which must outlive this
    /// words[cols], scales[cols / 32]. False where a value is not finite.
    bool read(int64_t row, int16_t* words, float* scales) const;

private:
    const Weight& weight_;
    const Codebook4* codebook_ = nullptr;
    const Int8Blocks* bytes_ = nullptr;
    bool offsets_ = false;
    int levels_[16] = {};  // of a codebook, in units of level_unit_
    float level_unit_ = 1;
};

}  // namespace halfbyte::cpu
