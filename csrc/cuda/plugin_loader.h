// Finds and opens libhalfbyte_cuda.so on first use.
#pragma once

#include <string>

#include "cuda/plugin.h"

namespace halfbyte::cuda {

/// The plugin beside this library, or the one that HALFBYTE_CUDA_LIBRARY names; opened once and kept.
/// Errors: not_found, one sentence that says why there is none (not built, does not load, another version).
const Plugin& plugin();

/// The same for those who only ask: null, and the sentence in `reason`.
const Plugin* find_plugin(std::string& reason);

/// Throws where status is not 0: out_of_memory, else internal, with the plugin's own words.
void check(const Plugin& plugin, Status status, const char* what);

}  // namespace halfbyte::cuda
