#include <sys/auxv.h>

namespace halfbyte::cpu::neon_dotprod {

bool supported();
bool supported() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

}  // namespace halfbyte::cpu::neon_dotprod
