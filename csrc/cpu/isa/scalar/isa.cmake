# Runs everywhere: what the compiler's default flags allow.
set(HALFBYTE_ISA_PROCESSORS ".*")
set(HALFBYTE_ISA_FLAGS "")
set(HALFBYTE_ISA_RANK 0)
