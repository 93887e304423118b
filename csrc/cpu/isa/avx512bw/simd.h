// The vocabulary of avx512/: the flags of this folder lack VNNI, which changes its integer products.
#pragma once

#include "cpu/isa/avx512/simd.h"
