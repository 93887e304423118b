// The emulator's own test: what it must compute, what it must report, what its table of accesses must show.
#include <sys/wait.h>
#include <unistd.h>

#include "emulator/selftest.h"
#include "harness.h"

namespace {

constexpr size_t kSize = 1 << 16;

bool with_races() { return cudaemu::accesses::available(); }
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAsan = true;
// A kernel that is stopped leaves what was on its stack as it is.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#else
constexpr bool kAsan = false;
#endif

std::vector<float> run(const std::string& kernel, unsigned blocks, std::vector<float> data, unsigned threads = 64) {
    data.resize(kSize);
    const test::DeviceArray<float> device(data);
    const cudaError_t error = selftest::launch(kernel, blocks, device.data, nullptr, threads);
    test::report(kernel, error == cudaSuccess ? "" : cudaGetErrorString(error));
    if (error != cudaSuccess) cudaemu::clear_fault();
    return device.host();
}

void expect(const std::string& name, bool right) { test::report(name, right ? "" : "is wrong"); }

void expect_checks(const std::string& kernel, unsigned blocks) {
    const auto got = run(kernel, blocks, {});
    for (int i = 1; i < 32; ++i) expect(kernel + ", check " + std::to_string(i), got[size_t(i)] == 0);
    if (kernel == "collectives") expect("count of threads", got[0] == float(64 * blocks));
}

// A kernel must be stopped for this reason; an empty one: it must not.
void expect_fault(const std::string& kernel, const std::string& reason, unsigned blocks = 1, unsigned threads = 64,
                  size_t dynamic = 0) {
    const test::DeviceArray<float> device(std::vector<float>(kSize, 0));
    const cudaError_t error = selftest::launch(kernel, blocks, device.data, nullptr, threads, dynamic);
    const std::string got = error == cudaSuccess ? "" : cudaemu::last_fault();
    const bool right = reason.empty() ? got.empty() : got.find(reason) != std::string::npos;
    test::report(kernel, right ? "" : "got '" + got + "', not '" + reason + "'");
    cudaemu::clear_fault();
}

// What ends the process is tried in a child.
template <class F>
bool dies(F action) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(0);
        action();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status != 0;
}

void values() {
    expect_checks("collectives", 3);
    expect_checks("bits", 1);
    std::vector<float> data(kSize);
    for (size_t i = 0; i < 256 + 128; ++i) data[i] = float(test::generator()() % 17) - 8;
    const auto got = run("products", 1, data);
    for (size_t kind = 0; kind < 3; ++kind)
        for (size_t row = 0; row < 16; ++row)
            for (size_t col = 0; col < 8; ++col) {
                float sum = 0;
                for (size_t k = 0; k < 16; ++k) sum += data[row * 16 + k] * data[256 + k * 8 + col];
                expect("products", got[512 + 128 * kind + row * 8 + col] == sum);
            }
    const auto sums = run("last_block<0>", 5, {});
    expect("last_block: sum, counter", sums[64] == 5 && sums[127] == 5 && sums[0] == 0);
    run("neighbours", 2, {});
    const auto unfinished = run("unfinished_copy", 1, {});
    for (size_t i = 0; i < 64; ++i) expect("unfinished_copy", std::isnan(unfinished[i]));
}

void faults() {
    expect_fault("divergent_barrier", "divergent barriers");
    expect_fault("missed_barrier", "barrier");
    expect_fault("missing_lane", "deadlock");
    expect_fault("exited_lane", "exit");
    expect_fault("divergent_warp", "divergent warp");
    expect_fault("wrong_mask", "leaves it out");
    expect_fault("wrong_width", "power of two");
    expect_fault("collectives", "lanes that do not exist", 1, 48);
    expect_fault("trap", "__trap");
    expect_fault("too_much_shared", "bytes of shared memory");
    expect_fault("ones", "block size", 1, 1025);
    expect_fault("ones", "grid size", 0);
    expect_fault("dynamic", "too much dynamic shared memory", 1, 64, 50 << 10);
    cudaFuncSetAttribute(selftest::find("dynamic"), cudaFuncAttributeMaxDynamicSharedMemorySize, 99 << 10);
    expect_fault("dynamic", "", 1, 64, 99 << 10);
    expect_fault("dynamic", "too much dynamic shared memory", 1, 64, (99 << 10) + 1);
    expect_fault("ones", "too much dynamic shared memory", 1, 64, 50 << 10);  // it asked for none
    expect("more shared memory than there is",
           cudaFuncSetAttribute(selftest::find("ones"), cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10) ==
               cudaErrorInvalidValue);
    cudaGetLastError();
    expect_fault("misaligned_copy", "cp.async is misaligned");
    expect_fault("copy_from_shared", "not global memory");
    expect_fault("misaligned_matrix", "not 16-byte aligned");
    expect_fault("matrix_of_global", "not in shared memory");
    expect_fault("cached_load_of_shared", "not global memory");
    expect_fault("misaligned_atomic", "misaligned");
    float host[64] = {};
    expect("host pointer", selftest::launch("ones", 1, host) == cudaErrorLaunchFailure &&
                               cudaemu::last_fault().find("host memory") != std::string::npos);
    cudaemu::clear_fault();

    const test::DeviceArray<float> device(kSize);
    expect("device memory is closed to the host", dies([&] { device.data[0] = 1; }));
    if (kAsan) {
        expect("past_the_end", dies([&] { selftest::launch("past_the_end", 1, device.data); }));
        expect("past_shared", dies([&] { selftest::launch("past_shared", 1, device.data); }));
        expect("use after free", dies([&] {
                   cudaFree(device.data);
                   selftest::launch("ones", 1, device.data);
               }));
        expect("the child itself lives", !dies([&] { selftest::launch("ones", 1, device.data); }));
    }
}

void races() {
    const auto race = [](const std::string& kernel, const std::string& reason, unsigned blocks = 1) {
        expect_fault(kernel, with_races() ? reason : "", blocks);
    };
    race("last_block<0>", "", 4);
    race("last_block<1>", "race", 4);
    race("last_block<2>", "race", 4);
    race("last_block<3>", "race", 4);
    race("unwritten", "no thread of the block wrote");
    race("blocks_collide", "race", 2);
    race("blocks_collide", "", 1);
    // By the order of threads: not yet written, or written by another.
    race("warps_collide", "selftest.cpp:");
    race("lanes_collide", "selftest.cpp:");
    race("neighbours", "", 2);
    race("overwrites", "race");
    race("atomic_and_plain", "race");
    race("early_read_of_copy", "selftest.cpp:");
    float host = 0;
    std::vector<float> data(kSize);
    float* const pointer = new float(1);
    std::memcpy(data.data(), &pointer, sizeof pointer);
    const test::DeviceArray<float> device(data);
    const cudaError_t error = selftest::launch("host_memory", 1, device.data);
    cudaMemcpy(&host, device.data + 64, 4, cudaMemcpyDeviceToHost);
    expect("host_memory", with_races() ? error == cudaErrorLaunchFailure &&
                                             cudaemu::last_fault().find("touches host memory") != std::string::npos
                                       : host == 1);
    delete pointer;
    cudaemu::clear_fault();
}

// requests, cost, least: of the load of the kernel's line that holds `text`, 64 threads.
void expect_access(const std::string& kernel, const std::string& name, const std::string& text,
                   cudaemu::accesses::Space space, uint64_t requests, uint64_t cost, uint64_t least, unsigned threads = 64) {
    if (!with_races()) return;
    cudaemu::accesses::start();
    const test::DeviceArray<float> device(std::vector<float>(kSize, 0));
    const cudaError_t error = selftest::launch(kernel, 1, device.data, nullptr, threads, 48 << 10);
    const auto row = cudaemu::accesses::total(name, text, space);
    const bool shared = space == cudaemu::accesses::Space::shared;
    const uint64_t got_cost = shared ? row.wavefronts : row.sectors,
                   got_least = shared ? row.least_wavefronts : row.least_sectors;
    char problem[200] = "";
    if (error != cudaSuccess || row.requests != requests || got_cost != cost || got_least != least)
        std::snprintf(problem, sizeof problem, "%s: requests %d, not %d; cost %d, not %d; least %d, not %d",
                      cudaGetErrorString(error), int(row.requests), int(requests), int(got_cost), int(cost), int(got_least),
                      int(least));
    test::report(kernel + ", " + text, problem);
    cudaemu::clear_fault();
}

void accesses() {
    using cudaemu::accesses::Space;
    const std::string stored = "// strided", loaded = "= s[threadIdx.x % 32 * kStride]";
    for (const std::string& text : {stored, loaded}) {
        expect_access("shared_stride<1>", "shared_stride<1", text, Space::shared, 1, 1, 1, 32);
        expect_access("shared_stride<2>", "shared_stride<2", text, Space::shared, 1, 2, 1, 32);
        expect_access("shared_stride<8>", "shared_stride<8", text, Space::shared, 1, 8, 1, 32);
        expect_access("shared_stride<32>", "shared_stride<32", text, Space::shared, 1, 32, 1, 32);
        expect_access("shared_stride<33>", "shared_stride<33", text, Space::shared, 1, 1, 1, 32);
        expect_access("shared_stride2<1>", "shared_stride<1", text, Space::shared, 1, 2, 2, 32);
        expect_access("shared_stride2<2>", "shared_stride<2", text, Space::shared, 1, 4, 2, 32);
        expect_access("shared_stride4<1>", "shared_stride<1", text, Space::shared, 1, 4, 4, 32);
        expect_access("shared_stride4<4>", "shared_stride<4", text, Space::shared, 1, 16, 4, 32);
    }
    expect_access("matrix_pitch<64>", "matrix_pitch<64", "ldmatrix_x4", Space::shared, 1, 32, 4, 32);
    expect_access("matrix_pitch<72>", "matrix_pitch<72", "ldmatrix_x4", Space::shared, 1, 4, 4, 32);
    const std::string loads = "t[threadIdx.x * kStride + kOffset]";  // load and store: the store is at stride 1
    expect_access("global_stride<1>", "global_stride<1, 0", loads, Space::global, 4, 16, 16);
    expect_access("global_stride<2>", "global_stride<2, 0", loads, Space::global, 4, 16 + 8, 16);
    expect_access("global_stride<8>", "global_stride<8, 0", loads, Space::global, 4, 64 + 8, 16);
    expect_access("global_stride<1,1>", "global_stride<1, 1", loads, Space::global, 4, 10 + 8, 16);
    expect_access("global_stride4<1>", "global_stride<1, 0", loads, Space::global, 4, 64, 64);
    expect_access("broadcast", "broadcast", "half of the lanes", Space::global, 12, 6 + 24, 6 + 20);
    expect_access("copy_rows", "copy_rows", "cp_async_16", Space::global, 2, 32, 32);
    expect_access("copy_rows", "copy_rows", "cp_async_16", Space::shared, 2, 8, 8);
}

}  // namespace

int main(int argc, char** argv) {
    return test::run_all(argc, argv, [] {
        values();
        faults();
        races();
        accesses();
    });
}
