# For tests only (option HALFBYTE_EMULATED_ISA): the vocabulary of isa/avx512 with every intrinsic written out as a loop, so that
# the AVX-512 room can be checked for correctness on a machine without AVX-512. Never chosen but by HALFBYTE_ISA=avx512_emulated.
set(HALFBYTE_ISA_PROCESSORS ".*")
set(HALFBYTE_ISA_FLAGS -DHALFBYTE_EMULATED)
set(HALFBYTE_ISA_RANK -1)
