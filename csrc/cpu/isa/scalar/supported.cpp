namespace halfbyte::cpu::scalar {

bool supported();
bool supported() { return true; }

}  // namespace halfbyte::cpu::scalar
