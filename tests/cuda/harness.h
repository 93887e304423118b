// What the kernel tests share: arrays in device memory between guards, random numbers, and the orders in which a case is run.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "accesses.h"
#include "cudaemu.h"

namespace test {

inline int passed = 0, failed = 0;

/// Device memory. Made of a count it is filled with 0xff: NaN as a float, so that an output never written shows.
template <class T>
struct DeviceArray {
    T* data = nullptr;
    size_t size = 0;
    explicit DeviceArray(const std::vector<T>& host) : size(host.size()) {
        cudaMalloc(reinterpret_cast<void**>(&data), size * sizeof(T));
        if (size != 0) cudaMemcpy(data, host.data(), size * sizeof(T), cudaMemcpyHostToDevice);
    }
    explicit DeviceArray(size_t n) : size(n) {
        cudaMalloc(reinterpret_cast<void**>(&data), size * sizeof(T));
        cudaMemset(data, 0xff, size * sizeof(T));
    }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    ~DeviceArray() { cudaFree(data); }
    std::vector<T> host() const {
        std::vector<T> out(size);
        if (size != 0) cudaMemcpy(out.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost);
        return out;
    }
};

inline std::mt19937& generator() {
    static std::mt19937 engine(1);
    return engine;
}

inline std::vector<float> normal(size_t n, float scale = 1) {
    std::normal_distribution<float> distribution(0, scale);
    std::vector<float> out(n);
    for (float& v : out) v = distribution(generator());
    return out;
}

/// A value in double and what it may be missed by.
struct Expected {
    double value = 0, allowed = 0;
};

inline void report(const std::string& name, const std::string& problem) {
    ++(problem.empty() ? passed : failed);
    if (!problem.empty()) std::printf("FAIL %s: %s\n", name.c_str(), problem.c_str());
}

inline void check(const std::string& name, cudaError_t error, const std::vector<float>& got,
                  const std::vector<Expected>& want) {
    if (error != cudaSuccess) {
        report(name, cudaGetErrorString(error));
        return cudaemu::clear_fault();
    }
    if (got.size() != want.size()) return report(name, "sizes differ");
    for (size_t i = 0; i < want.size(); ++i)
        if (!(std::abs(double(got[i]) - want[i].value) <= want[i].allowed)) {
            char text[160];
            std::snprintf(text, sizeof text, "element %zu is %.9g, not %.9g +- %.3g", i, double(got[i]), want[i].value,
                          want[i].allowed);
            return report(name, text);
        }
    report(name, "");
}

/// In a race build: the requests to shared memory of this kernel (part of its name) from source lines that hold this text need no
/// wavefront more than they must; there are some.
inline void expect_conflict_free(const std::string& kernel, const std::string& text) {
    if (!cudaemu::accesses::available()) return;
    const auto row = cudaemu::accesses::total(kernel, text, cudaemu::accesses::Space::shared);
    report(kernel + ", '" + text + "'", row.requests == 0 ? "no access to shared memory was seen"
                                        : row.wavefronts == row.least_wavefronts
                                            ? ""
                                            : std::to_string(row.wavefronts) + " wavefronts, not " +
                                                  std::to_string(row.least_wavefronts) + " (see --accesses)");
}

/// The same of global memory: at most `most` times the sectors that hold as many bytes.
inline void expect_sectors(const std::string& kernel, const std::string& text, double most = 1) {
    if (!cudaemu::accesses::available()) return;
    const auto row = cudaemu::accesses::total(kernel, text, cudaemu::accesses::Space::global);
    report(kernel + ", '" + text + "'",
           row.requests == 0 ? "no access to global memory was seen"
           : double(row.sectors) <= most * double(row.least_sectors)
               ? ""
               : std::to_string(row.sectors) + " sectors, not " + std::to_string(row.least_sectors) + " (see --accesses)");
}

/// Reads --order=forward|reverse|random and --seeds=N (1), runs the cases under each, prints the count. The exit status.
/// With --accesses a race build also prints how the kernels' loads and stores meet the memory (emulator/accesses.h).
template <class F>
int run_all(int argc, char** argv, F cases) {
    int seeds = 1;
    bool accesses = false;
    cudaemu::accesses::start();
    cudaemu::options.reuse_addresses = false;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--order=reverse") cudaemu::options.order = cudaemu::Order::reverse;
        if (argument == "--order=random") cudaemu::options.order = cudaemu::Order::random;
        if (argument == "--accesses") accesses = true;
        if (argument.rfind("--seeds=", 0) == 0) seeds = std::stoi(argument.substr(8));
    }
    for (int seed = 0; seed < seeds; ++seed) {
        cudaemu::options.seed = uint64_t(seed);
        cases();
    }
    if (accesses) std::fputs(cudaemu::accesses::format(cudaemu::accesses::table()).c_str(), stdout);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

}  // namespace test
