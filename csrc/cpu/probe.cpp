// The roofs of a roofline, on the processor at hand. This file is compiled without flags for an instruction set: every
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

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace halfbyte {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Touches every byte of `streams` parts of `bytes` each, side by side; bytes is a multiple of 512, and the value depends on
// all of them. One part or several: which is quicker is a matter of the processor's prefetchers.
using Read = uint64_t (*)(const unsigned char* data, size_t bytes, int streams);

// One processor's way to multiply: `run` does kChains * `products` multiply-adds per round, and its value depends on all of
// them. Null where it has none.
struct Multiply {
    float (*run)(int64_t rounds);
    int products;
};

// Independent accumulators: more than latency * throughput (4 or 5 cycles * 2) of any processor that has these vectors, and
// few enough for 16 registers.
constexpr int kChains = 12;

uint64_t read_scalar(const unsigned char* data, size_t bytes, int streams) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes; i += 64)
        for (int s = 0; s < streams; s++) {
            uint64_t words[8];
            std::memcpy(words, data + size_t(s) * bytes + i, sizeof words);
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

// The sums wrap around, as those of vector instructions do: hence unsigned.
template <class Element>
float multiply_add_integers(int64_t rounds) {
    uint32_t accumulators[kChains * 4] = {};
    volatile Element source = 3;  // unknown to the compiler, which would else sum the rounds by one multiplication
    for (int64_t i = 0; i < rounds; i++) {
        const int32_t factor = source;
        for (uint32_t& accumulator : accumulators) accumulator += uint32_t(factor * int32_t(Element(accumulator)));
    }
    uint32_t sum = 0;
    for (uint32_t accumulator : accumulators) sum += accumulator;
    return float(sum);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) uint64_t read_avx2(const unsigned char* data, size_t bytes, int streams) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 128)
        for (int s = 0; s < streams; s++) {
            const __m256i* block = reinterpret_cast<const __m256i*>(data + size_t(s) * bytes + i);
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

// kChains accumulators of `Vector`, each given to EXPRESSION (in which it is called `sum`) once a round. The empty asm keeps
// the factors unknown to the compiler, which would else take what does not change out of the loop.
#define HALFBYTE_INTEGER_CHAINS(Vector, zero, factor, add, lowest, EXPRESSION) \
    Vector sums[kChains];                                                      \
    for (Vector& sum : sums) sum = zero;                                       \
    Vector a = factor, b = factor;                                             \
    for (int64_t i = 0; i < rounds; i++) {                                     \
        _Pragma("GCC unroll 12") for (int j = 0; j < kChains; j++) {           \
            asm volatile("" : "+v"(a));                                        \
            const Vector sum = sums[j];                                        \
            sums[j] = EXPRESSION;                                              \
        }                                                                      \
    }                                                                          \
    for (int j = 1; j < kChains; j++) sums[0] = add(sums[0], sums[j]);         \
    return float(lowest(sums[0]))

__attribute__((target("avx2"))) int32_t lowest(__m256i x) { return _mm256_extract_epi32(x, 0); }
__attribute__((target("avx512f"))) int32_t lowest(__m512i x) { return _mm512_cvtsi512_si32(x); }

__attribute__((target("avx2"))) float multiply_add_int16_avx2(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m256i, _mm256_setzero_si256(), _mm256_set1_epi16(3), _mm256_add_epi32, lowest,
                            _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)));
}

__attribute__((target("avx2"))) float multiply_add_int8_avx2(int64_t rounds) {
    const __m256i ones = _mm256_set1_epi16(1);
    HALFBYTE_INTEGER_CHAINS(__m256i, _mm256_setzero_si256(), _mm256_set1_epi8(3), _mm256_add_epi32, lowest,
                            _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones)));
}

__attribute__((target("avx2,avxvnni"))) float multiply_add_int16_avxvnni(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m256i, _mm256_setzero_si256(), _mm256_set1_epi16(3), _mm256_add_epi32, lowest,
                            _mm256_dpwssd_avx_epi32(sum, a, b));
}

__attribute__((target("avx2,avxvnni"))) float multiply_add_int8_avxvnni(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m256i, _mm256_setzero_si256(), _mm256_set1_epi8(3), _mm256_add_epi32, lowest,
                            _mm256_dpbusd_avx_epi32(sum, a, b));
}

__attribute__((target("avx512f,avx512bw"))) float multiply_add_int16_avx512(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m512i, _mm512_setzero_si512(), _mm512_set1_epi16(3), _mm512_add_epi32, lowest,
                            _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)));
}

__attribute__((target("avx512f,avx512bw"))) float multiply_add_int8_avx512(int64_t rounds) {
    const __m512i ones = _mm512_set1_epi16(1);
    HALFBYTE_INTEGER_CHAINS(__m512i, _mm512_setzero_si512(), _mm512_set1_epi8(3), _mm512_add_epi32, lowest,
                            _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones)));
}

__attribute__((target("avx512f,avx512vnni"))) float multiply_add_int16_vnni(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m512i, _mm512_setzero_si512(), _mm512_set1_epi16(3), _mm512_add_epi32, lowest,
                            _mm512_dpwssd_epi32(sum, a, b));
}

__attribute__((target("avx512f,avx512vnni"))) float multiply_add_int8_vnni(int64_t rounds) {
    HALFBYTE_INTEGER_CHAINS(__m512i, _mm512_setzero_si512(), _mm512_set1_epi8(3), _mm512_add_epi32, lowest,
                            _mm512_dpbusd_epi32(sum, a, b));
}

#undef HALFBYTE_INTEGER_CHAINS

__attribute__((target("avx512f,avx512bf16"))) float multiply_add_bfloat16(int64_t rounds) {
    __m512 sums[kChains];
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    const auto factor = (__m512bh)_mm512_set1_epi32(0x3c003c00);  // twice 2^-7
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; j++) sums[j] = _mm512_dpbf16_ps(sums[j], factor, factor);
    }
    for (int j = 1; j < kChains; j++) sums[0] = _mm512_add_ps(sums[0], sums[j]);
    return _mm512_cvtss_f32(sums[0]);
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const unsigned char* data, size_t bytes, int streams) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 256)
        for (int s = 0; s < streams; s++) {
            const unsigned char* block = data + size_t(s) * bytes + i;
            a = _mm512_xor_si512(a, _mm512_load_si512(block));
            b = _mm512_xor_si512(b, _mm512_load_si512(block + 64));
            c = _mm512_xor_si512(c, _mm512_load_si512(block + 128));
            d = _mm512_xor_si512(d, _mm512_load_si512(block + 192));
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

Read best_read() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
    return read_scalar;
}

#if defined(__x86_64__)

// AVX-VNNI (256 bits): bit 4 of EAX in leaf 7.1, a name that older compilers' __builtin_cpu_supports does not know. The
// registers are enabled by whoever has enabled those of AVX2.
bool has_avx_vnni() {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1U << 4)) != 0;
}

Multiply best_integers(bool int8) {
    if (__builtin_cpu_supports("avx512vnni"))
        return int8 ? Multiply{multiply_add_int8_vnni, 64} : Multiply{multiply_add_int16_vnni, 32};
    if (__builtin_cpu_supports("avx512bw"))
        return int8 ? Multiply{multiply_add_int8_avx512, 64} : Multiply{multiply_add_int16_avx512, 32};
    if (has_avx_vnni()) return int8 ? Multiply{multiply_add_int8_avxvnni, 32} : Multiply{multiply_add_int16_avxvnni, 16};
    if (__builtin_cpu_supports("avx2"))
        return int8 ? Multiply{multiply_add_int8_avx2, 32} : Multiply{multiply_add_int16_avx2, 16};
    return {nullptr, 0};
}

Multiply best_vectors(Arithmetic arithmetic) {
    switch (arithmetic) {
        case Arithmetic::float32:
            if (__builtin_cpu_supports("avx512f")) return {multiply_add_avx512, 16};
            if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {multiply_add_avx2, 8};
            break;
        case Arithmetic::bfloat16:
            if (__builtin_cpu_supports("avx512bf16")) return {multiply_add_bfloat16, 32};
            break;
        case Arithmetic::int16: return best_integers(false);
        case Arithmetic::int8: return best_integers(true);
    }
    return {nullptr, 0};
}

#endif

Multiply best_multiply(Arithmetic arithmetic) {
#if defined(__x86_64__)
    if (const Multiply vectors = best_vectors(arithmetic); vectors.run != nullptr) return vectors;
#endif
    switch (arithmetic) {
        case Arithmetic::float32: return {multiply_add_scalar, 4};
        case Arithmetic::int16: return {multiply_add_integers<int16_t>, 4};
        case Arithmetic::int8: return {multiply_add_integers<int8_t>, 4};
        case Arithmetic::bfloat16: break;
    }
    return {nullptr, 0};
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
    constexpr size_t kUnit = 16384;
    const std::unique_ptr<unsigned char, decltype(&std::free)> buffer(
        static_cast<unsigned char*>(std::aligned_alloc(kAlignment, kBytes)), &std::free);
    if (!buffer) fail(ErrorCode::out_of_memory, "read_bandwidth: no memory for a buffer of ", kBytes >> 20, " MiB");

#if defined(__linux__)
    // Without huge pages the walks through the page tables are measured as well: a fifth less on one core of a virtual machine.
    madvise(buffer.get(), kBytes, MADV_HUGEPAGE);
#endif

    ThreadPool pool(options.threads);
    const Read read = best_read();
    std::vector<uint64_t> results(size_t(pool.threads()));
    const auto part = [&](int worker, int workers) { return kBytes / kUnit * size_t(worker) / size_t(workers) * kUnit; };
    // Every page is written first, by the thread that will read it: pages never written all map to one page of zeros.
    pool.run([&](int worker, int workers) {
        const size_t begin = part(worker, workers);
        std::memset(buffer.get() + begin, worker + 1, part(worker + 1, workers) - begin);
    });
    double seconds = 1e30;
    for (const int streams : {1, 4})
        seconds = std::min(seconds, shortest_pass(pool, options.seconds / 2, 3, [&](int worker, int workers) {
                               const size_t begin = part(worker, workers), bytes = part(worker + 1, workers) - begin;
                               results[size_t(worker)] += read(buffer.get() + begin, bytes / size_t(streams), streams);
                           }));
    return double(kBytes) / seconds * 1e-9;
}

Arithmetic parse_arithmetic(std::string_view name) {
    if (name == "float32") return Arithmetic::float32;
    if (name == "bfloat16") return Arithmetic::bfloat16;
    if (name == "int16") return Arithmetic::int16;
    if (name == "int8") return Arithmetic::int8;
    fail(ErrorCode::invalid_argument, "arithmetic: expected \"float32\", \"bfloat16\", \"int16\" or \"int8\", found \"",
         name, '"');
}

double peak_gflops(Arithmetic arithmetic, const ProbeOptions& options) {
    check("peak_gflops", options);
    const Multiply multiply = best_multiply(arithmetic);
    if (multiply.run == nullptr) return 0;
    ThreadPool pool(options.threads);
    std::vector<float> results(size_t(pool.threads()));
    constexpr int64_t kRounds = 1'000'000;  // a few milliseconds: the start of the threads no longer counts
    const double seconds =
        shortest_pass(pool, options.seconds, 3, [&](int worker, int) { results[size_t(worker)] += multiply.run(kRounds); });
    return 2.0 * double(kRounds) * kChains * multiply.products * pool.threads() / seconds * 1e-9;
}

}  // namespace halfbyte
