# Adds products of bytes (sdot): Cortex-A76, Neoverse N1 (2018) onwards.
set(HALFBYTE_ISA_PROCESSORS "aarch64|arm64")
set(HALFBYTE_ISA_FLAGS -march=armv8.2-a+dotprod)
set(HALFBYTE_ISA_RANK 20)
