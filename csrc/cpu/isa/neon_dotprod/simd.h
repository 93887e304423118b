// The vocabulary of neon/: the flags of this folder choose the products of bytes in it.
#pragma once

#include "cpu/isa/neon/simd.h"
