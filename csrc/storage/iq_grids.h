// The grids of GGUF's IQ1, IQ2 and IQ3 formats: which short vectors of small digits an index may stand for. Private to storage/.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace halfbyte::storage {

/// [kCount] vectors of kLength digits.
template <int kCount, int kLength>
using Grid = std::array<std::array<uint8_t, kLength>, kCount>;

const Grid<2048, 8>& iq1_grid();     ///< digits 0 .. 2: IQ1_S and IQ1_M
const Grid<256, 8>& iq2_xxs_grid();  ///< digits 0 .. 2
const Grid<512, 8>& iq2_xs_grid();
const Grid<1024, 8>& iq2_s_grid();
const Grid<256, 4>& iq3_xxs_grid();  ///< digits 0 .. 7
const Grid<512, 4>& iq3_s_grid();

/// Levels of IQ2_XXS, IQ2_XS and IQ2_S: those of the digits, then their negatives.
constexpr std::array<float, 16> kIq2Levels = {8, 25, 43, -8, -25, -43};
/// Levels of IQ1_S and IQ1_M: digit - 1 + 1/8, then digit - 1 - 1/8.
constexpr std::array<float, 16> kIq1Levels = {-0.875f, 0.125f, 1.125f, -1.125f, -0.125f, 0.875f};

/// Signs of 8 elements from 7 bits: the eighth makes their number even.
inline unsigned even_signs(unsigned seven) { return seven | unsigned(std::popcount(seven) & 1) << 7; }

/// codes[j] = digits[j], plus `negative` where bit j of `signs` is set.
template <size_t kLength>
void signed_codes(const std::array<uint8_t, kLength>& digits, unsigned signs, int negative, uint8_t* codes) {
    for (size_t j = 0; j < kLength; j++) codes[j] = uint8_t(digits[j] + ((signs >> j & 1) != 0 ? negative : 0));
}

}  // namespace halfbyte::storage
