#include <cpuid.h>

namespace halfbyte::cpu::avx_vnni {

bool supported();
bool supported() {
    // AVX-VNNI and F16C have no name in __builtin_cpu_supports() of older compilers; the system's support of AVX covers their
    // registers.
    constexpr unsigned kAvxVnni = 1u << 4;  // leaf 7, subleaf 1, eax
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_F16C) == 0) return false;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || a < 1) return false;  // a: the last subleaf
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}

}  // namespace halfbyte::cpu::avx_vnni
