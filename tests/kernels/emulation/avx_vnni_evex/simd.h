// isa/avx_vnni/simd.h with the encoding of AVX-512 VNNI.
#pragma once

#define HALFBYTE_VNNI ""
#include "cpu/isa/avx2/simd.h"
