#include <cpuid.h>

namespace halfbyte::cpu::avx2 {

bool supported();
bool supported() {
    // F16C has no name in __builtin_cpu_supports() of older compilers; the system's support of AVX covers its registers.
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) != 0 &&
           (c & bit_F16C) != 0;
}

}  // namespace halfbyte::cpu::avx2
