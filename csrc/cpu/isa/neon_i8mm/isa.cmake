# Adds products of unsigned with signed bytes (usdot): Neoverse V1 and N2, Apple M2, Cortex-A510 (2021) onwards.
set(HALFBYTE_ISA_PROCESSORS "aarch64|arm64")
set(HALFBYTE_ISA_FLAGS -march=armv8.2-a+dotprod+i8mm)
set(HALFBYTE_ISA_RANK 30)
