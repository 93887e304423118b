namespace halfbyte::cpu::avx512bw {

bool supported();
bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}

}  // namespace halfbyte::cpu::avx512bw
