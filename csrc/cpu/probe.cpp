// The two roofs of a roofline, on the processor at hand. This file is compiled without flags for an instruction set: every
// function that uses one names it in a target attribute and is called only where the processor has it.
#include "device/probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace halfbyte {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One processor's way to do either measurement. `read` touches every byte of [data, data + bytes), bytes a multiple of 512;
// `multiply_add` does kChains * `lanes` fused multiply-adds per round. Both return a value that depends on all their work.
struct Probe {
    uint64_t (*read)(const unsigned char* data, size_t bytes);
    float (*multiply_add)(int64_t rounds);
    int lanes;
};

// Independent accumulators: more than latency * throughput (4 or 5 cycles * 2) of any processor that has these vectors, and
// few enough for 16 registers.
constexpr int kChains = 12;

uint64_t read_scalar(const unsigned char* data, size_t bytes) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes; i += 64) {
        uint64_t words[8];
        std::memcpy(words, data + i, sizeof words);
        for (int j = 0; j < 8; j++) sums[j] ^= words[j];
    }
    uint64_t sum = 0;
    for (uint64_t s : sums) sum ^= s;
    return sum;
}

float multiply_add_scalar(int64_t rounds) {
    float accumulators[kChains * 4] = {};
    for (int64_t i = 0; i < rounds; i++)
        for (float& accumulator : accumulators) {
#ifdef FP_FAST_FMAF
            accumulator = std::fma(accumulator, 0.999F, 0.5F);
#else
            accumulator = accumulator * 0.999F + 0.5F;
#endif
        }
    float sum = 0;
    for (float accumulator : accumulators) sum += accumulator;
    return sum;
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) uint64_t read_avx2(const unsigned char* data, size_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 128) {
        const __m256i* block = reinterpret_cast<const __m256i*>(data + i);
        a = _mm256_xor_si256(a, _mm256_load_si256(block));
        b = _mm256_xor_si256(b, _mm256_load_si256(block + 1));
        c = _mm256_xor_si256(c, _mm256_load_si256(block + 2));
        d = _mm256_xor_si256(d, _mm256_load_si256(block + 3));
    }
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)));
    return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

__attribute__((target("avx2,fma"))) float multiply_add_avx2(int64_t rounds) {
    __m256 accumulators[kChains];
    for (int j = 0; j < kChains; j++) accumulators[j] = _mm256_set1_ps(float(j));
    const __m256 factor = _mm256_set1_ps(0.999F), term = _mm256_set1_ps(0.5F);
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; j++) accumulators[j] = _mm256_fmadd_ps(accumulators[j], factor, term);
    }
    for (int j = 1; j < kChains; j++) accumulators[0] = _mm256_add_ps(accumulators[0], accumulators[j]);
    return _mm256_cvtss_f32(accumulators[0]);
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const unsigned char* data, size_t bytes) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 256) {
        a = _mm512_xor_si512(a, _mm512_load_si512(data + i));
        b = _mm512_xor_si512(b, _mm512_load_si512(data + i + 64));
        c = _mm512_xor_si512(c, _mm512_load_si512(data + i + 128));
        d = _mm512_xor_si512(d, _mm512_load_si512(data + i + 192));
    }
    alignas(64) uint64_t lanes[8];
    _mm512_store_si512(lanes, _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d)));
    uint64_t sum = 0;
    for (uint64_t lane : lanes) sum ^= lane;
    return sum;
}

__attribute__((target("avx512f"))) float multiply_add_avx512(int64_t rounds) {
    __m512 accumulators[kChains];
    for (int j = 0; j < kChains; j++) accumulators[j] = _mm512_set1_ps(float(j));
    const __m512 factor = _mm512_set1_ps(0.999F), term = _mm512_set1_ps(0.5F);
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; j++) accumulators[j] = _mm512_fmadd_ps(accumulators[j], factor, term);
    }
    for (int j = 1; j < kChains; j++) accumulators[0] = _mm512_add_ps(accumulators[0], accumulators[j]);
    return _mm512_cvtss_f32(accumulators[0]);
}

#endif

Probe best_probe() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return {read_avx512, multiply_add_avx512, 16};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {read_avx2, multiply_add_avx2, 8};
#endif
    return {read_scalar, multiply_add_scalar, 4};
}

// Calls pass(worker, workers) on every thread until `seconds` are over, at least `least` times; the shortest time of a pass.
double shortest_pass(ThreadPool& pool, double seconds, int least, FunctionRef<void(int, int)> pass) {
    double shortest = 1e30;
    const Clock::time_point start = Clock::now();
    for (int passes = 0; passes < least || seconds_since(start) < seconds; passes++) {
        const Clock::time_point pass_start = Clock::now();
        pool.run(pass);
        shortest = std::min(shortest, seconds_since(pass_start));
    }
    return shortest;
}

void check(const char* function, const ProbeOptions& options) {
    if (options.threads < 0 || options.threads > 4096)
        fail(ErrorCode::invalid_argument, function, ": threads must be in 0..4096 (0: one per core), not ", options.threads);
    if (!(options.seconds > 0 && options.seconds <= 60))
        fail(ErrorCode::invalid_argument, function, ": seconds must be above 0 and at most 60, not ", options.seconds);
}

}  // namespace

double read_bandwidth_gb_per_s(const ProbeOptions& options) {
    check("read_bandwidth", options);
    constexpr size_t kAlignment = size_t(2) << 20;  // of a huge page
    constexpr size_t kBytes = size_t(512) << 20;
    constexpr size_t kUnit = 4096;
    const std::unique_ptr<unsigned char, decltype(&std::free)> buffer(
        static_cast<unsigned char*>(std::aligned_alloc(kAlignment, kBytes)), &std::free);
    if (!buffer) fail(ErrorCode::out_of_memory, "read_bandwidth: no memory for a buffer of ", kBytes >> 20, " MiB");

    ThreadPool pool(options.threads);
    const Probe probe = best_probe();
    std::vector<uint64_t> results(size_t(pool.threads()));
    const auto part = [&](int worker, int workers) { return kBytes / kUnit * size_t(worker) / size_t(workers) * kUnit; };
    // Every page is written first, by the thread that will read it: pages never written all map to one page of zeros.
    pool.run([&](int worker, int workers) {
        const size_t begin = part(worker, workers);
        std::memset(buffer.get() + begin, worker + 1, part(worker + 1, workers) - begin);
    });
    const double seconds = shortest_pass(pool, options.seconds, 3, [&](int worker, int workers) {
        const size_t begin = part(worker, workers);
        results[size_t(worker)] += probe.read(buffer.get() + begin, part(worker + 1, workers) - begin);
    });
    return double(kBytes) / seconds * 1e-9;
}

double peak_gflops(const ProbeOptions& options) {
    check("peak_gflops", options);
    ThreadPool pool(options.threads);
    const Probe probe = best_probe();
    std::vector<float> results(size_t(pool.threads()));
    constexpr int64_t kRounds = 1'000'000;  // a few milliseconds: the start of the threads no longer counts
    const double seconds = shortest_pass(pool, options.seconds, 3,
                                         [&](int worker, int) { results[size_t(worker)] += probe.multiply_add(kRounds); });
    return 2.0 * double(kRounds) * kChains * probe.lanes * pool.threads() / seconds * 1e-9;
}

}  // namespace halfbyte
