// What this machine's processor can do at best, measured: what benchmarks compare with.
#pragma once

namespace halfbyte {

struct ProbeOptions {
    int threads = 0;       ///< 0: one per available core
    double seconds = 0.3;  ///< how long to measure, > 0; the best pass counts
};

/// Bytes per second (1e9) that `threads` cores can read from memory: wide loads over a buffer larger than the caches, the
/// best of many passes. Takes 512 MiB of memory for the time of the call. Errors: invalid_argument, out_of_memory.
double read_bandwidth_gb_per_s(const ProbeOptions& options);

/// Float32 operations per second (1e9) that `threads` cores can do: independent fused multiply-adds on registers in the
/// widest vectors that this processor has (two operations each). Errors: invalid_argument.
double peak_gflops(const ProbeOptions& options);

}  // namespace halfbyte
