// Times the CUDA kernels by themselves over the shapes of Llama-3.2-1B and Llama-3-8B, beside what a copy within the device
// reaches. Run by tools/bench/gpu.sh on a machine with a GPU; prints a table in Markdown.
//   cuda_kernels [--tiny]      --tiny: one small shape, one run: to try the program itself
//
// A product rotates over so many copies of its weight that none is in L2 when it is read again. Times are medians of cudaEvents.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "cuda/kernels/launchers.h"

namespace {

using namespace halfbyte::cuda;

bool failed = false;

bool good(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return true;
    std::fprintf(stderr, "cuda_kernels: %s: %s\n", what, cudaGetErrorString(error));
    failed = true;
    return false;
}

/// Device memory of some byte value; freed at the end of the program.
void* memory(size_t bytes, int value) {
    void* out = nullptr;
    if (good(cudaMalloc(&out, bytes), "allocate")) good(cudaMemset(out, value, bytes), "fill");
    return out;
}

/// Median seconds of a call of f(i), i counting up, after a few that are not counted.
double seconds(int repeats, const std::function<cudaError_t(int, cudaStream_t)>& f) {
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    good(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    good(cudaEventCreate(&begin), "event"), good(cudaEventCreate(&end), "event");
    std::vector<float> times;
    for (int i = 0; i < repeats + 3 && !failed; ++i) {
        good(cudaEventRecord(begin, stream), "record");
        good(f(i, stream), "launch");
        good(cudaEventRecord(end, stream), "record");
        good(cudaEventSynchronize(end), "wait");
        float milliseconds = 0;
        good(cudaEventElapsedTime(&milliseconds, begin, end), "time");
        if (i >= 3) times.push_back(milliseconds);
    }
    cudaEventDestroy(begin), cudaEventDestroy(end), cudaStreamDestroy(stream);
    if (times.empty()) return 0;
    std::sort(times.begin(), times.end());
    return double(times[times.size() / 2]) * 1e-3;
}

struct Shape {
    const char* name;
    int features, cols;
};

/// NF4 with double-quantised scales; every byte the same: the time does not hang on it.
TiledWeight weight(const Shape& shape, void* codes) {
    TiledWeight w{};
    w.format = Format::codebook4;
    w.rows = shape.features, w.cols = shape.cols;
    w.row_tiles = (shape.features + 15) / 16, w.col_tiles = (shape.cols + 63) / 64;
    w.blocks = shape.cols / 64, w.block_shift = 6;
    w.codes = codes;
    static void* const levels = memory(1024, 0);
    static void* const scales = memory(size_t(1) << 24, 1);
    static void* const nested = memory(size_t(1) << 22, 0);
    w.scales = scales;
    w.levels = static_cast<const float*>(levels);
    w.nested_levels = static_cast<const float*>(levels);
    w.nested_scales = static_cast<const float*>(nested);
    w.nested_count = std::max(1, w.rows * w.blocks / 256), w.nested_shift = 8;
    return w;
}

void products(const Shape& shape, const std::vector<int>& row_counts, double copy_rate, int repeats) {
    const size_t bytes = size_t((shape.features + 15) / 16) * size_t((shape.cols + 63) / 64) * 512;
    const int copies = int(std::clamp<size_t>((size_t(512) << 20) / bytes, 1, 64));  // more than any L2
    std::vector<TiledWeight> weights;
    for (int i = 0; i < copies && !failed; ++i) weights.push_back(weight(shape, memory(bytes, 0x5a)));
    const int most = *std::max_element(row_counts.begin(), row_counts.end());
    void* const x = memory(size_t(most) * size_t(shape.cols) * 4, 0);
    auto* const y = static_cast<float*>(memory(size_t(most) * size_t(shape.features) * 4, 0));
    auto* const partials = static_cast<float*>(memory(size_t(kPartialFloats) * 4, 0));
    auto* const counters = static_cast<uint32_t*>(memory(kCounters * 4, 0));
    for (const int rows : row_counts) {
        if (failed) return;
        const double time = seconds(repeats, [&](int i, cudaStream_t stream) {
            const LinearPart part{weights[size_t(i % copies)], nullptr, y, shape.features, 0};
            if (rows <= kGemvRows) {
                Gemv command{};
                command.x = static_cast<const float*>(x), command.x_stride = shape.cols;
                command.rows = rows, command.parts = 1, command.part[0] = part;
                command.partials = partials, command.counters = counters;
                return run(command, stream);
            }
            Gemm command{};
            command.x = x, command.rows = rows, command.parts = 1, command.part[0] = part;
            command.partials = partials, command.counters = counters;
            return run(command, stream);
        });
        const double rate = double(bytes) * 1.03125 / time, flops = 2.0 * rows * shape.features * shape.cols / time;
        std::printf("| %s [%d, %d] | %d | %.1f | %.0f | %.0f %% | %.1f |\n", shape.name, shape.features, shape.cols, rows,
                    time * 1e6, rate * 1e-9, 100 * rate / copy_rate, flops * 1e-12);
    }
    for (const TiledWeight& w : weights) cudaFree(const_cast<void*>(w.codes));
    for (void* one : {x, static_cast<void*>(y), static_cast<void*>(partials), static_cast<void*>(counters)}) cudaFree(one);
}

void attention(int heads, int kv_heads, int head_dim, int keys, int rows, double copy_rate, int repeats) {
    const size_t bytes = size_t(kv_heads) * size_t(keys) * size_t(head_dim) * 2;
    Attention a{};
    a.q = static_cast<const float*>(memory(size_t(rows * heads * head_dim) * 4, 0)), a.q_stride = heads * head_dim;
    a.out = static_cast<float*>(memory(size_t(rows * heads * head_dim) * 4, 0)), a.out_stride = heads * head_dim;
    a.k = {memory(bytes, 0), Element::f16, int64_t(keys) * head_dim, head_dim, nullptr, 0};
    a.v = {memory(bytes, 0), Element::f16, int64_t(keys) * head_dim, head_dim, nullptr, 0};
    const AttentionSequence sequence{0, rows, 0, keys};
    void* const sequences = memory(sizeof sequence, 0);
    good(cudaMemcpy(sequences, &sequence, sizeof sequence, cudaMemcpyHostToDevice), "copy");
    a.sequences = static_cast<const AttentionSequence*>(sequences);
    a.count = 1, a.heads = heads, a.kv_heads = kv_heads, a.head_dim = head_dim;
    a.scale = 0.125f, a.causal = 1, a.max_rows = rows, a.max_keys = keys;
    a.splits = rows == 1 ? std::clamp(2 * multiprocessors() / kv_heads, 1, std::min(kAttentionSplits, keys / 128)) : 1;
    a.partials = static_cast<float*>(memory(size_t(heads) * kAttentionSplits * size_t(head_dim + 2) * 4, 0));
    const double time = seconds(repeats, [&](int, cudaStream_t stream) { return run(a, stream); });
    const double rate = 2.0 * double(bytes) / time, flops = 2.0 * rows * double(keys) * heads * head_dim * 2 / time;
    std::printf("| attention, heads of %d, %d keys | %d | %.1f | %.0f | %.0f %% | %.1f |\n", head_dim, keys, rows,
                time * 1e6, rate * 1e-9, 100 * rate / copy_rate, flops * 1e-12);
}

}  // namespace

int main(int argc, char** argv) {
    const bool tiny = argc > 1 && std::strcmp(argv[1], "--tiny") == 0;
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        std::fprintf(stderr, "cuda_kernels: there is no NVIDIA GPU (or no driver) on this machine\n");
        return 1;
    }
    cudaDeviceProp properties;
    if (!good(cudaGetDeviceProperties(&properties, 0), "properties")) return 1;
    set_multiprocessors(properties.multiProcessorCount);
    const int repeats = tiny ? 1 : 50;
    const size_t copied = size_t(tiny ? 1 : 1024) << 20;
    void *from = memory(copied, 0), *to = memory(copied, 0);
    const double copy_time = seconds(tiny ? 1 : 20, [&](int, cudaStream_t stream) {
        return cudaMemcpyAsync(to, from, copied, cudaMemcpyDeviceToDevice, stream);
    });
    cudaFree(from), cudaFree(to);
    const double copy_rate = 2.0 * double(copied) / copy_time;
    std::printf("%s, sm_%d%d, %d multiprocessors; a copy within the device: %.0f GB/s (read and written)\n\n",
                properties.name, properties.major, properties.minor, properties.multiProcessorCount, copy_rate * 1e-9);
    std::printf(
        "| kernel, NF4 double-quantised | rows | us | GB/s | of the copy | TFLOP/s |\n| --- | --- | --- | --- | --- | --- "
        "|\n");
    if (tiny) {
        products({"tiny", 64, 128}, {1, 4, 20}, copy_rate, repeats);
        attention(4, 1, 64, 256, 1, copy_rate, repeats);
        return failed;
    }
    const std::vector<int> rows = {1, 2, 4, 8, 16, 64, 128, 512, 2048};
    for (const Shape& shape : {Shape{"1B q", 2048, 2048}, Shape{"1B up", 8192, 2048}, Shape{"1B down", 2048, 8192},
                               Shape{"1B output", 128256, 2048}, Shape{"8B q", 4096, 4096}, Shape{"8B up", 14336, 4096},
                               Shape{"8B down", 4096, 14336}})
        products(shape, rows, copy_rate, repeats);
    for (const int keys : {1024, 8192, 32768}) attention(32, 8, 64, keys, 1, copy_rate, repeats);
    for (const int keys : {1024, 8192, 32768}) attention(32, 8, 128, keys, 1, copy_rate, repeats);
    for (const int keys : {512, 2048}) attention(32, 8, 64, keys, keys, copy_rate, repeats);
    for (const int keys : {512, 2048}) attention(32, 8, 128, keys, keys, copy_rate, repeats);
    return failed;
}
