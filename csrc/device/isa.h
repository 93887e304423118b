// The instruction sets of the CPU device, by name.
#pragma once

#include <string>
#include <vector>

namespace halfbyte {

/// Those that this build has and this machine can run, best first: {"avx2", "scalar"}.
std::vector<std::string> instruction_sets();
/// The one that a CPU device made now would use: what the environment variable HALFBYTE_ISA names, or the best.
/// Error invalid_argument, with the list of those that can run, where HALFBYTE_ISA names none of them.
std::string instruction_set();

}  // namespace halfbyte
