# Advanced SIMD of every 64-bit Arm processor.
set(HALFBYTE_ISA_PROCESSORS "aarch64|arm64")
set(HALFBYTE_ISA_FLAGS -march=armv8-a)
set(HALFBYTE_ISA_RANK 10)
