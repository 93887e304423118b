# For tests only (option HALFBYTE_EMULATED_ISA): the vocabulary of isa/avx_vnni with its integer products in the encoding of
# AVX-512 VNNI, so that the AVX-VNNI room can be checked on a machine that has the one and lacks the other: what differs is
# the encoding of those instructions alone. Never chosen but by HALFBYTE_ISA=avx_vnni_evex.
set(HALFBYTE_ISA_PROCESSORS "x86_64|AMD64|amd64")
set(HALFBYTE_ISA_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512vnni)
set(HALFBYTE_ISA_RANK -2)
