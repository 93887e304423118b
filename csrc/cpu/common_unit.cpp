#include "cpu/common_unit.h"

#include <bit>
#include <cmath>
#include <numeric>

namespace halfbyte::cpu {

float common_unit(const float* values, int64_t count, float least) {
    // Every value is odd * 2^exponent with an odd integer; so is the unit: their odd parts' common divisor, times the least power.
    uint32_t odd = 0;
    int exponent = 0;
    for (int64_t i = 0; i < count; i++) {
        if (values[i] == 0) continue;
        int own_exponent;
        auto own = uint32_t(std::ldexp(std::frexp(std::fabs(values[i]), &own_exponent), 24));
        const int zeros = std::countr_zero(own);
        own >>= zeros, own_exponent += zeros - 24;
        exponent = odd == 0 || own_exponent < exponent ? own_exponent : exponent;
        odd = std::gcd(odd, own);
        if (std::ldexp(double(odd), exponent) < double(least)) return 0;
    }
    return float(std::ldexp(double(odd), exponent));
}

}  // namespace halfbyte::cpu
