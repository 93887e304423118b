// The functions that one instruction set provides. Raw pointers only: nothing here may instantiate a template that the
// linker could keep for every machine.
#pragma once

#include <span>

namespace halfbyte::cpu {

struct Kernels;

struct Isa {
    const char* name;
    int rank;
    bool (*supported)();
    const Kernels* kernels;
};

/// Every instruction set of this build, from a list that CMake generates.
std::span<const Isa> built_isas();

}  // namespace halfbyte::cpu
