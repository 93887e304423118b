namespace halfbyte::cpu::avx_vnni_evex {

bool supported();
bool supported() {
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace halfbyte::cpu::avx_vnni_evex
