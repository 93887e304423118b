# AVX2, FMA and F16C: Haswell (2013) and Zen (2017) onwards.
set(HALFBYTE_ISA_PROCESSORS "x86_64|AMD64|amd64")
set(HALFBYTE_ISA_FLAGS -mavx2 -mfma -mf16c)
set(HALFBYTE_ISA_RANK 20)
