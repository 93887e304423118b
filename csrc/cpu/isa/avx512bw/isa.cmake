# AVX-512 F, BW, VL and DQ without VNNI: Skylake-X (2017) and Cascade Lake's predecessors.
set(HALFBYTE_ISA_PROCESSORS "x86_64|AMD64|amd64")
set(HALFBYTE_ISA_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprfchw)
set(HALFBYTE_ISA_RANK 26)
