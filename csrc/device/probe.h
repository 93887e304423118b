// What this machine's processor can do at best, measured: what benchmarks compare with.
#pragma once

#include <string_view>

namespace halfbyte {

struct ProbeOptions {
    int threads = 0;       ///< 0: one per available core
    double seconds = 0.3;  ///< how long to measure, > 0; the best pass counts
};

/// Bytes per second (1e9) that `threads` cores can read from memory: wide loads over a buffer larger than the caches (in
/// huge pages where the system gives them), front to back or in four streams, the best of many passes. Takes 512 MiB of memory for the time of the call. Errors: invalid_argument, out_of_memory.
double read_bandwidth_gb_per_s(const ProbeOptions& options);

/// What is multiplied; sums are kept in float32 or int32.
enum class Arithmetic { float32, bfloat16, int16, int8 };

/// "float32", "bfloat16", "int16", "int8". Error invalid_argument, naming these.
Arithmetic parse_arithmetic(std::string_view name);

/// Operations per second (1e9; a multiplication and an addition are two) that `threads` cores can do: independent
/// multiply-adds on registers, with the widest instructions that this processor has for these numbers (dot products where it
/// has them; else the two or three instructions that make one). 0 for bfloat16 on a processor that does not multiply it.
/// Errors: invalid_argument.
double peak_gflops(Arithmetic arithmetic, const ProbeOptions& options);

}  // namespace halfbyte
