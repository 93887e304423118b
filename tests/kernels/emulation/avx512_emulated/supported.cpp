namespace halfbyte::cpu::avx512_emulated {

bool supported();
bool supported() { return true; }

}  // namespace halfbyte::cpu::avx512_emulated
