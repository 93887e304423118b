#include <sys/auxv.h>

namespace halfbyte::cpu::neon_i8mm {

bool supported();
bool supported() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0 && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }

}  // namespace halfbyte::cpu::neon_i8mm
