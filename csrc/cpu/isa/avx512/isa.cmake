# AVX-512 F, BW, VL, DQ and VNNI: Ice Lake (2019) and Zen 4 (2022) onwards.
set(HALFBYTE_ISA_PROCESSORS "x86_64|AMD64|amd64")
set(HALFBYTE_ISA_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprfchw)
set(HALFBYTE_ISA_RANK 30)
