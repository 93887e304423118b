namespace halfbyte::cpu::neon {

bool supported();
bool supported() { return true; }  // part of AArch64

}  // namespace halfbyte::cpu::neon
