// Runs small commands of every kernel in emulation and writes down what was launched and what became of memory, for test_ptx.py,
// which runs the PTX of the same launches on the same memory.
//   cuda_ptx_cases FAMILY FILE     FAMILY: linear, gemm, rows, attention, adapters, sample
// FILE: a line of JSON for each case, memory in hexadecimal: small sizes.
#include <cstdlib>
#include <functional>

#include "core/error.h"
#include "cuda/kernels/attention.cuh"
#include "cuda/kernels/launchers.h"
#include "linear_weights.h"

// Where addresses in the table of symbols begin: that of kernels is told from here.
extern "C" void halfbyte_ptx_anchor() {}

namespace {

using namespace test;
using namespace halfbyte::cuda;

std::FILE* file = nullptr;

struct Block {
    const void* memory;
    size_t bytes;
    const char* kind;  // "f32", "bf16", "exact", "scratch"
};
std::vector<Block> blocks;

void write_hex(const void* bytes, size_t count) {
    const auto* at = static_cast<const unsigned char*>(bytes);
    for (size_t i = 0; i < count; ++i) std::fprintf(file, "%02x", at[i]);
}

std::vector<unsigned char> contents(const Block& block) {
    std::vector<unsigned char> bytes(block.bytes);
    cudaMemcpy(bytes.data(), block.memory, block.bytes, cudaMemcpyDeviceToHost);
    return bytes;
}

/// Arrays that live until the end of the case.
std::vector<std::shared_ptr<void>> owned;
template <class T>
T* device(const std::vector<T>& values, const char* kind = "exact") {
    auto array = std::make_shared<DeviceArray<T>>(values);
    blocks.push_back({array->data, values.size() * sizeof(T), kind});
    owned.push_back(array);
    return array->data;
}
float* output(size_t count) { return device(std::vector<float>(count, 7.0f), "f32"); }

struct Partials {
    float* partials;
    uint32_t* counters;
};
Partials partials(size_t floats) {
    return {device(std::vector<float>(floats, 0.0f), "scratch"), device(std::vector<uint32_t>(64, 0))};
}

const TiledWeight& weight(const Weight& from) {
    auto made = std::make_shared<DeviceWeight>(from);
    const auto note = [](const auto& array, size_t size) {
        if (array) blocks.push_back({array->data, array->size * size, "exact"});
    };
    note(made->codes, 1), note(made->scales, 1), note(made->offsets, 4), note(made->levels, 4);
    note(made->nested_levels, 4), note(made->nested_scales, 4);
    owned.push_back(made);
    return made->tiled;
}

/// `tolerance`: of float outputs, relative to the greatest of their array.
void record(const std::string& name, double tolerance, const std::function<cudaError_t()>& command) {
    std::vector<std::vector<unsigned char>> before;
    for (const Block& block : blocks) before.push_back(contents(block));
    std::fprintf(file, "{\"name\": \"%s\", \"tolerance\": %g, \"launches\": [", name.c_str(), tolerance);
    bool first = true;
    cudaemu::on_launch = [&](const cudaemu::Launch& launch) {
        std::fprintf(
            file,
            "%s{\"kernel\": %lld, \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"dynamic\": %zu, \"parameters\": \"",
            first ? "" : ", ",
            static_cast<long long>(reinterpret_cast<intptr_t>(launch.kernel) -
                                   reinterpret_cast<intptr_t>(&halfbyte_ptx_anchor)),
            launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x, launch.block.y, launch.block.z,
            launch.dynamic_shared_bytes);
        write_hex(launch.parameters, launch.parameter_bytes);
        std::fprintf(file, "\"}");
        first = false;
    };
    const cudaError_t error = command();
    cudaemu::on_launch = nullptr;
    report(name, error == cudaSuccess ? "" : cudaGetErrorString(error));
    std::fprintf(file, "], \"memory\": [");
    for (size_t i = 0; i < blocks.size(); ++i) {
        std::fprintf(file, "%s{\"address\": %llu, \"kind\": \"%s\", ", i == 0 ? "" : ", ",
                     static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(blocks[i].memory)), blocks[i].kind);
        if (std::string(blocks[i].kind) == "scratch") {  // zeros, and nobody's business afterwards
            std::fprintf(file, "\"bytes\": %zu}", blocks[i].bytes);
            continue;
        }
        std::fprintf(file, "\"before\": \"");
        write_hex(before[i].data(), before[i].size());
        std::fprintf(file, "\", \"after\": \"");
        const std::vector<unsigned char> after = contents(blocks[i]);
        write_hex(after.data(), after.size());
        std::fprintf(file, "\"}");
    }
    std::fprintf(file, "]}\n");
    blocks.clear();
    owned.clear();
}

constexpr double kSums = 0x1p-18;  // float32 sums in the same order, products joined to them or not

LinearPart part(const Weight& from, size_t rows, bool bias, bool accumulate) {
    const TiledWeight& w = weight(from);
    const size_t features = size_t(w.rows);
    return {w, bias ? device(normal(features)) : nullptr, output(rows * features), int64_t(features), accumulate};
}

struct Named {
    const char* name;
    Weight weight;
};
std::vector<Named> formats(int64_t rows, int64_t cols) {
    std::vector<Named> out;
    out.push_back({"nf4 nested", bnb4(nf4_storage(), rows, cols, 64, 16)});
    out.push_back({"codes, blocks of 32, offsets", plain4(rows, cols, 32, true)});
    out.push_back({"codes, blocks of 16", plain4(rows, cols, 16, false)});
    out.push_back({"int8", int8(rows, cols, 64)});
    out.push_back({"int8, blocks of 32", int8(rows, cols, 32)});
    out.push_back({"bytes, blocks of 16, offsets", plain8(rows, cols, 16, true)});
    out.push_back({"f16", floats(DType::f16, rows, cols)});
    out.push_back({"bf16", floats(DType::bf16, rows, cols)});
    out.push_back({"f32", floats(DType::f32, rows, cols)});
    return out;
}

void linear_cases() {
    set_multiprocessors(4);
    for (const Named& format : formats(36, 192))
        for (const int rows : {1, 2, 5, 12}) {
            Gemv command{};
            const Partials room = partials(size_t(1) << 16);
            command.partials = room.partials, command.counters = room.counters;
            command.x = device(normal(size_t(rows) * 192)), command.x_stride = 192;
            command.rows = rows, command.parts = 1;
            command.part[0] = part(format.weight, size_t(rows), rows == 2, rows == 5);
            record(concat("gemv ", format.name, " x ", rows), kSums, [&] { return run(command, nullptr); });
        }
    for (const Named& format : formats(20, 96)) {
        LinearF32 command{device(normal(3 * 96)), 96, 3, part(format.weight, 3, true, true)};
        record(concat("linear_f32 ", format.name), kSums, [&] { return run(command, nullptr); });
        Embed table{weight(format.weight), device(std::vector<int32_t>{19, 0, 7}), output(3 * 96), 96, 3, 1};
        record(concat("embed ", format.name), 0x1p-22, [&] { return run(table, nullptr); });
    }
}

void gemm_cases() {
    set_multiprocessors(4);
    for (const Named& format : formats(36, 192))
        for (const int rows : {18, 40, 66}) {
            std::vector<__nv_bfloat16> x;
            for (const float v : normal(size_t(rows) * 192)) x.push_back(__float2bfloat16(v));
            Gemm command{};
            const Partials room = partials(size_t(1) << 16);
            command.partials = room.partials, command.counters = room.counters;
            command.x = device(x), command.rows = rows, command.parts = 1;
            command.part[0] = part(format.weight, size_t(rows), rows == 18, rows == 40);
            record(concat("gemm ", format.name, " x ", rows), kSums, [&] { return run(command, nullptr); });
        }
    // Over two blocks, whose sums the last one adds.
    std::vector<__nv_bfloat16> x;
    for (const float v : normal(18 * 1024)) x.push_back(__float2bfloat16(v));
    Gemm command{};
    const Partials room = partials(size_t(1) << 16);
    command.partials = room.partials, command.counters = room.counters;
    command.x = device(x), command.rows = 18, command.parts = 1;
    command.part[0] = part(bnb4(nf4_storage(), 20, 1024, 64, 0), 18, true, false);
    record("gemm split", kSums, [&] { return run(command, nullptr); });
}

void rows_cases() {
    for (const int cols : {96, 70})
        for (const Transform kind : {Transform::none, Transform::rms_norm, Transform::layer_norm, Transform::activation,
                                     Transform::gated_activation})
            for (int a = 1; a <= (kind == Transform::activation ? 5 : 1); ++a) {
                TransformRows command{};
                command.kind = kind;
                command.activation = kind == Transform::gated_activation ? Activation::silu : Activation(a);
                command.x = device(normal(3 * size_t(cols))), command.x_stride = cols;
                command.up = device(normal(3 * size_t(cols))), command.up_stride = cols;
                command.gamma = device(normal(size_t(cols))), command.beta = device(normal(size_t(cols)));
                command.eps = 1e-5f, command.rows = 3, command.cols = cols;
                command.out = output(3 * size_t(cols)), command.out_stride = cols;
                command.padded_cols = 128;
                command.out_bf16 = device(std::vector<uint16_t>(3 * 128, 0x4040), "bf16");
                record(concat("transform ", int(kind), " ", a, " of ", cols), 0x1p-20,
                       [&] { return run(command, nullptr); });
            }
    for (const int interleaved : {0, 1}) {
        Rope command{device(normal(3 * 48), "f32"),
                     48,
                     3,
                     3,
                     16,
                     8,
                     device(std::vector<int32_t>{0, 5, 70000}),
                     device(std::vector<float>{1, 0.5f, 0.1f, 0.03f, 0.01f, 0.001f, 1e-4f, 1e-5f}),
                     1.25f,
                     interleaved};
        record(concat("rope ", interleaved), 0x1p-20, [&] { return run(command, nullptr); });
    }
    for (const int cols : {32, 21}) {
        const auto size = size_t(cols);
        Add add{device(normal(2 * size), "f32"), cols, device(normal(2 * size)), cols, 2, cols};
        record(concat("add ", cols), 0, [&] { return run(add, nullptr); });
        ScaleColumns scale{device(normal(2 * size), "f32"), cols, device(normal(size)), 2, cols};
        record(concat("scale_columns ", cols), 0, [&] { return run(scale, nullptr); });
        GatherRows gather{
            device(normal(4 * size)), cols, device(std::vector<int32_t>{3, 1, 1}), output(3 * size), cols, 3, cols};
        record(concat("gather_rows ", cols), 0, [&] { return run(gather, nullptr); });
        std::vector<int32_t> columns;
        for (int c = 0; c < cols; ++c) columns.push_back(2 * c);
        ScatterColumns scatter{device(normal(2 * size)), cols, device(columns), output(4 * size), 2 * cols, 2, cols};
        record(concat("scatter_columns ", cols), 0, [&] { return run(scatter, nullptr); });
    }
    for (int pooling = 0; pooling < 4; ++pooling) {
        Pool command{device(normal(9 * 40)),
                     40,
                     device(std::vector<int32_t>{0, 4, 4}),
                     device(std::vector<int32_t>{4, 0, 5}),
                     output(3 * 40),
                     40,
                     3,
                     40,
                     Pooling(pooling),
                     pooling % 2};
        record(concat("pool ", pooling), 0x1p-20, [&] { return run(command, nullptr); });
    }
}

size_t element_bytes(Element element) { return element == Element::f32 ? 4 : element == Element::i8 ? 1 : 2; }

/// Random elements of a cache, between -1 and 1.
std::vector<uint8_t> cache(Element element, size_t count) {
    std::vector<uint8_t> bytes(count * element_bytes(element));
    const std::vector<float> values = normal(count, 0.5f);
    for (size_t i = 0; i < count; ++i) {
        const __half half = __float2half(values[i]);
        const __nv_bfloat16 bf16 = __float2bfloat16(values[i]);
        const auto byte = int8_t(std::max(-127.0f, std::min(127.0f, values[i] * 64)));
        const void* from = element == Element::f32   ? static_cast<const void*>(&values[i])
                           : element == Element::f16 ? static_cast<const void*>(&half)
                           : element == Element::i8  ? static_cast<const void*>(&byte)
                                                     : &bf16;
        std::memcpy(bytes.data() + i * element_bytes(element), from, element_bytes(element));
    }
    return bytes;
}

Attention attention(Element element, int head_dim, int heads, int kv_heads, int rows, int keys) {
    const int width = (head_dim + 15) / 16 * 16, capacity = (keys + 63) / 64 * 64;
    Attention a{};
    a.q = device(normal(size_t(rows * heads * head_dim))), a.q_stride = heads * head_dim;
    a.out = output(size_t(rows * heads * head_dim)), a.out_stride = heads * head_dim;
    for (KvSource* source : {&a.k, &a.v}) {
        source->element = element;
        source->data = device(cache(element, size_t(kv_heads * capacity * width)));
        source->row_stride = width, source->head_stride = int64_t(capacity) * width;
        if (element == Element::i8)
            source->scales = device(std::vector<float>(size_t(kv_heads * capacity), 0.015f)),
            source->scale_stride = capacity;
    }
    a.sequences = device(std::vector<AttentionSequence>{{0, rows, 0, keys}});
    a.count = 1;
    a.heads = heads, a.kv_heads = kv_heads, a.head_dim = head_dim;
    a.scale = 1 / std::sqrt(float(head_dim));
    a.causal = 1;
    a.max_rows = rows, a.max_keys = keys, a.splits = 1;
    return a;
}

void attention_cases() {
    const Element elements[] = {Element::f32, Element::f16, Element::bf16, Element::i8};
    const char* names[] = {"f32", "f16", "bf16", "i8"};
    for (int e = 0; e < 4; ++e) {
        const int heads[] = {1, 4, 8};
        const int dims[] = {32, 112, 144};
        for (int d = 0; d < 3; ++d)
            for (int h = 0; h < 3; ++h) {
                Attention a = attention(elements[e], dims[d], heads[h], 1, 1, 70);
                if (h == 1) {
                    a.splits = 2, a.softcap = 20, a.window = 60;
                    a.partials = device(std::vector<float>(size_t(heads[h] * 2 * (dims[d] + 2)), 0), "scratch");
                }
                record(concat("decode ", names[e], " ", dims[d], " ", heads[h]), 0x1p-17, [&] { return run(a, nullptr); });
            }
        StoreKv store{};
        for (const int head_dim : {16, 10}) {
            store.x = device(normal(size_t(3 * 2 * head_dim))), store.x_stride = 2 * head_dim;
            store.target = device(std::vector<int32_t>{4, 0, 63});
            store.data = device(cache(elements[e], 2 * 64 * 16));
            if (elements[e] == Element::i8) store.scales = device(std::vector<float>(2 * 64, 1.0f));
            store.element = elements[e], store.tokens = 3, store.heads = 2, store.head_dim = head_dim, store.rows = 64;
            record(concat("store_kv ", names[e], " ", head_dim), 0, [&] { return run(store, nullptr); });
        }
        for (const int head_dim : {16, 64, 80, 112, 160}) {
            Attention a = attention(elements[e], head_dim, 2, 1, 9, 70);
            if (head_dim == 64) a.softcap = 20, a.window = 50;
            if (head_dim == 80) a.bias = device(normal(9 * 70)), a.bias_row_stride = 70, a.causal = 0;
            // Products of 16-bit numbers, sums in the same order; probabilities are rounded to 16 bits again.
            record(concat("prefill ", names[e], " ", head_dim), 0x1p-9, [&] { return run(a, nullptr); });
        }
        Attention a = attention(elements[e], 20, 2, 2, 6, 11);
        a.exact = 1;
        record(concat("exact ", names[e]), 0x1p-17, [&] { return run(a, nullptr); });
    }
    // 128 queries a block: chosen where blocks are many.
    for (const int head_dim : {64, 128}) {
        for (const Element element : {Element::f16, Element::bf16}) {
            Attention a = attention(element, head_dim, 1, 1, 130, 130);
            record(concat("prefill of many rows ", head_dim), 0x1p-9, [&] { return attention::prefill(a, 0, 2, nullptr); });
        }
    }
}

void adapters_cases() {
    for (const int run_length : {1, 3, 6, 40, 260}) {
        const int in = 72, out = 40;
        std::vector<AdapterEntry> entries;
        const Element elements[] = {Element::f32, Element::f16, Element::bf16};
        const int ranks[] = {16, 5, 0};
        for (int e = 0; e < 3; ++e) {
            AdapterEntry entry{};
            entry.rank = ranks[e];
            entry.a_element = elements[e], entry.b_element = elements[2 - e];
            if (entry.rank > 0) {
                entry.a = device(cache(entry.a_element, size_t(entry.rank * in)));
                entry.b = device(cache(entry.b_element, size_t(entry.rank * out)));
            }
            entry.scale = 0.5f + float(e), entry.weight = 1;
            if (e > 0) entry.gain = device(normal(size_t(out))), entry.shift = device(normal(size_t(out)));
            entry.pivot_is_bias = e == 1;
            entries.push_back(entry);
        }
        // Runs of rows with the first, the first and second, the third; the last row has none.
        std::vector<int32_t> rows, begin{0}, pair_entry, first, end;
        const std::vector<std::vector<int32_t>> sets = {{0}, {0, 1}, {2}};
        for (const auto& set : sets) {
            first.push_back(int32_t(rows.size()));
            for (int i = 0; i < run_length; ++i) {
                rows.push_back(int32_t(rows.size()));
                pair_entry.insert(pair_entry.end(), set.begin(), set.end());
                begin.push_back(int32_t(pair_entry.size()));
            }
            end.push_back(int32_t(rows.size()));
        }
        const size_t all = rows.size() + 1;
        Adapt command{};
        command.x = device(normal(all * size_t(in))), command.x_stride = in;
        command.y = device(normal(all * size_t(out)), "f32"), command.y_stride = out;
        command.bias = device(normal(size_t(out)));
        command.in = in, command.out = out;
        command.entries = device(entries);
        command.row_count = int32_t(rows.size()), command.pair_count = int32_t(pair_entry.size());
        command.rows = device(rows), command.begin = device(begin), command.pair_entry = device(pair_entry);
        command.max_rank = 16;
        command.low = device(std::vector<float>(pair_entry.size() * 16, 0), "f32");
        command.segment_first = device(first), command.segment_end = device(end);
        command.segment_count = 3, command.max_segment = run_length;
        record(concat("adapt, runs of ", run_length), kSums, [&] { return run(command, nullptr); });
    }
}

void sample_cases() {
    const SampleRow settings[] = {{0, 0, 1, 0, 0},          {0.8f, 0, 1, 0, 0.3},    {0.9f, 20, 1, 0, 0.7},
                                  {1.1f, 0, 0.9f, 0, 0.55}, {1, 0, 1, 0.05f, 0.999}, {0.7f, 50, 0.8f, 0.01f, 0.2}};
    const int vocab = 700;
    std::vector<SampleRow> rows(std::begin(settings), std::end(settings));
    const auto count = int32_t(rows.size());
    Sample command{};
    command.logits = device(normal(size_t(count * vocab), 2)), command.logits_stride = vocab;
    command.rows = device(rows), command.count = count, command.vocab = vocab;
    command.tokens = device(std::vector<int32_t>(size_t(count), -7));
    command.scratch = device(std::vector<uint8_t>(sample_scratch_bytes(count, vocab), 0), "scratch");
    record("sample", 0, [&] { return run(command, nullptr); });
}

}  // namespace

int main(int argc, char** argv) {
    const std::string family = argc > 1 ? argv[1] : "";
    file = argc > 2 ? std::fopen(argv[2], "w") : nullptr;
    if (file == nullptr) {
        std::printf("usage: cuda_ptx_cases linear|gemm|rows|attention|adapters|sample FILE\n");
        return argc == 1 ? 0 : 2;
    }
    if (family == "linear") linear_cases();
    if (family == "gemm") gemm_cases();
    if (family == "rows") rows_cases();
    if (family == "attention") attention_cases();
    if (family == "adapters") adapters_cases();
    if (family == "sample") sample_cases();
    std::fclose(file);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
