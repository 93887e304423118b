// The vocabulary of avx2/ with the integer products of AVX-VNNI.
#pragma once

// In front of its instructions: without it an assembler writes those of AVX-512 VNNI.
#define HALFBYTE_VNNI "%{vex%} "
#include "cpu/isa/avx2/simd.h"
