# AVX2 and AVX-VNNI, the 256-bit integer products without AVX-512: Alder Lake (2021), Zen 5 (2024) onwards.
set(HALFBYTE_ISA_PROCESSORS "x86_64|AMD64|amd64")
set(HALFBYTE_ISA_FLAGS -mavx2 -mfma -mf16c -mavxvnni)
set(HALFBYTE_ISA_RANK 24)
