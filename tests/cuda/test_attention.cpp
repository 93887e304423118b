// Attention against sums in double of what the cache holds.
//
// Tolerances. Every rounding is an independent error of at most u of its value, a variance of u^2 / 3: u = 2^-11 (f16) or 2^-8 (bf16)
// where prefill rounds queries and weights once, and f32 and i8 sources once more, to f16. With weights w (their sum 1), output o
// and a score's errors of deviation s_j = scale sqrt(sum (q_i k_ji)^2) u / sqrt(3),
//     o changes by  sum_j w_j (v_j - o) error_j,  of deviation at most  sum_j w_j |v_j - o| s_j,
// and by sqrt(sum (w_j v_j)^2) u / sqrt(3) for weights (values as well, if they are rounded). Six deviations are allowed. To that come the
// float32 sums: d + 8 roundings of 2^-24 of the sum of magnitudes of a score's products, twice that of weights and values, and
// 2^-21 of a score (of the cap) for exp2 and tanh. The smallest f16 is 2^-24: weights that small are off by 2^-25 of the greatest.
//
// One value in ten, and those at tile borders, is 30 times as large: a key too many or too few is far outside.
#include "cuda/kernels/attention.cuh"
#include "cuda/kernels/launchers.h"
#include "harness.h"

#include <algorithm>

using namespace halfbyte::cuda;
using namespace test;

namespace {

struct Case {
    Element element = Element::f16;
    bool activations = false;  // f32 [n, kv_heads * head_dim] in place of a cache
    int heads = 1, kv_heads = 1, head_dim = 64;
    std::vector<std::pair<int, int>> sequences;  // rows, keys
    bool causal = true;
    int window = 0;
    float softcap = 0;
    int bias = 0;  // 1: one for all heads, 2: one a head
    int splits = 1;
    bool table = false;
    bool exact = false;
    int row_tiles = 0;  // of prefill()
    int gap = 0;        // between rows of q, out and activations
};

std::string name_of(const Case& c) {
    std::string name = c.activations ? "activations" : std::string(1, "fhbi"[int(c.element)]) + " cache";
    name +=
        ", heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " of " + std::to_string(c.head_dim) + ",";
    for (const auto& [rows, keys] : c.sequences) name += " " + std::to_string(rows) + ":" + std::to_string(keys);
    if (c.causal) name += " causal";
    if (c.window > 0) name += " window " + std::to_string(c.window);
    if (c.softcap > 0) name += " softcap";
    if (c.bias > 0) name += " bias " + std::to_string(c.bias);
    if (c.splits > 1) name += " splits " + std::to_string(c.splits);
    if (c.table) name += " table";
    if (c.exact) name += " exact";
    return name;
}

/// Keys or values as stored, and what they are in double.
struct Stored {
    std::vector<uint8_t> bytes;
    std::vector<float> scales;
    std::vector<double> values;  // [row][kv_heads][head_dim]
};

/// `live`: the rows that hold keys. What nobody wrote is 0xff: NaN, or -1 with a scale of NaN.
Stored store(const Case& c, int64_t rows, int64_t row_stride, int64_t head_stride, const std::vector<int64_t>& live,
             const std::vector<float>& x) {
    const int size = c.element == Element::f32 ? 4 : c.element == Element::i8 ? 1 : 2;
    const int width = c.activations ? c.head_dim : attention::padded_width(c.head_dim);
    const int64_t elements = c.activations ? rows * row_stride : c.kv_heads * head_stride;
    Stored s;
    s.bytes.assign(size_t(elements * size), 0xff);
    if (c.element == Element::i8) s.scales.assign(size_t(c.kv_heads * rows), NAN);
    s.values.assign(size_t(rows * c.kv_heads * c.head_dim), NAN);
    for (const int64_t row : live)
        for (int h = 0; h < c.kv_heads; ++h) {
            const float* from = &x[size_t((row * c.kv_heads + h) * c.head_dim)];
            float most = 0;
            for (int d = 0; d < c.head_dim; ++d) most = std::max(most, std::fabs(from[d]));
            if (c.element == Element::i8) s.scales[size_t(h * rows + row)] = most / 127;
            for (int d = 0; d < width; ++d) {
                const float value = d < c.head_dim ? from[d] : 0;
                void* to = &s.bytes[size_t(h * head_stride + row * row_stride + d) * size_t(size)];
                double decoded = value;
                if (c.element == Element::f32) {
                    std::memcpy(to, &value, 4);
                } else if (c.element == Element::f16) {
                    const __half half = __float2half_rn(value);
                    std::memcpy(to, &half, 2);
                    decoded = __half2float(half);
                } else if (c.element == Element::bf16) {
                    const __nv_bfloat16 half = __float2bfloat16_rn(value);
                    std::memcpy(to, &half, 2);
                    decoded = __bfloat162float(half);
                } else {
                    const auto byte = int8_t(std::nearbyint(value / (most / 127)));
                    std::memcpy(to, &byte, 1);
                    decoded = double(byte) * double(most / 127);
                }
                if (d < c.head_dim) s.values[size_t((row * c.kv_heads + h) * c.head_dim + d)] = decoded;
            }
        }
    return s;
}

void run_case(const Case& c, bool hide_all = false) {
    const int count = int(c.sequences.size()), dim = c.head_dim, group = c.heads / c.kv_heads;
    std::vector<AttentionSequence> sequences;
    int max_rows = 0, max_keys = 0, rows = 0, blocks = 0;
    for (const auto& [n, keys] : c.sequences) {
        max_rows = std::max(max_rows, n), max_keys = std::max(max_keys, keys);
        sequences.push_back({rows, n, blocks * 64, keys});
        rows += n, blocks += (keys + 63) / 64;
    }
    // Keys of sequence s begin in block order[...]: shuffled with a table, in order without.
    std::vector<int32_t> order;
    for (int i = 0; i < blocks; ++i) order.push_back(i);
    if (c.table) std::shuffle(order.begin(), order.end(), generator());
    const int table_stride = (max_keys + 63) / 64 + 1;
    std::vector<int32_t> table(size_t(count * table_stride), 1 << 28);
    std::vector<std::vector<int64_t>> row_of(static_cast<size_t>(count));
    std::vector<int64_t> live;
    for (int s = 0; s < count; ++s)
        for (int key = 0; key < sequences[size_t(s)].keys; ++key) {
            const int32_t block = order[size_t(sequences[size_t(s)].first_key / 64 + key / 64)];
            table[size_t(s * table_stride + key / 64)] = block;
            live.push_back(block * 64 + key % 64);
            row_of[size_t(s)].push_back(live.back());
        }

    const int64_t total = blocks * 64, width = attention::padded_width(dim);
    const int64_t row_stride = c.activations ? c.kv_heads * dim + c.gap : width;
    const int64_t head_stride = c.activations ? dim : total * width;
    std::vector<float> kx = normal(size_t(total * c.kv_heads * dim)), vx = normal(kx.size());
    std::uniform_int_distribution<int> tenth(0, 9);
    for (int64_t row = 0; row < total; ++row)
        if (const int64_t at = row % 64; at == 0 || at == 63 || tenth(generator()) == 0)
            for (int64_t i = 0; i < c.kv_heads * dim; ++i) vx[size_t(row * c.kv_heads * dim + i)] *= 30;
    const Stored k = store(c, total, row_stride, head_stride, live, kx),
                 v = store(c, total, row_stride, head_stride, live, vx);

    const int64_t q_stride = c.heads * dim + c.gap;
    const std::vector<float> q = normal(size_t(rows * q_stride));
    std::vector<float> bias;
    if (c.bias > 0) bias = normal(size_t((c.bias == 2 ? c.heads : 1) * rows * max_keys));
    if (hide_all)
        for (int key = 0; key < max_keys; ++key) bias[size_t(max_keys + key)] = -INFINITY;  // query 1 sees nothing

    const DeviceArray<float> device_q(q), out(size_t(rows * q_stride)), device_bias(bias), k_scales(k.scales),
        v_scales(v.scales);
    const DeviceArray<uint8_t> device_k(k.bytes), device_v(v.bytes);
    const DeviceArray<AttentionSequence> device_sequences(sequences);
    const DeviceArray<int32_t> device_table(table);
    const DeviceArray<float> partials(c.splits > 1 ? size_t(rows * c.heads * c.splits) * size_t(width + 2) : 0);
    Attention a{};
    a.q = device_q.data, a.q_stride = q_stride, a.out = out.data, a.out_stride = q_stride;
    a.k = {device_k.data, c.element, head_stride, row_stride, c.element == Element::i8 ? k_scales.data : nullptr, total};
    a.v = {device_v.data, c.element, head_stride, row_stride, c.element == Element::i8 ? v_scales.data : nullptr, total};
    a.sequences = device_sequences.data, a.count = count;
    a.block_table = c.table ? device_table.data : nullptr, a.table_stride = table_stride;
    a.heads = c.heads, a.kv_heads = c.kv_heads, a.head_dim = dim;
    a.scale = 1 / std::sqrt(float(dim)), a.causal = c.causal, a.window = c.window, a.softcap = c.softcap;
    if (c.bias > 0) a.bias = device_bias.data, a.bias_row_stride = max_keys;
    if (c.bias == 2) a.bias_head_stride = int64_t(rows) * max_keys;
    a.max_rows = max_rows, a.max_keys = max_keys + 100, a.exact = c.exact, a.splits = c.splits;
    a.partials = c.splits > 1 ? partials.data : nullptr;
    const cudaError_t error = c.row_tiles > 0 ? attention::prefill(a, 0, c.row_tiles, nullptr) : run(a, nullptr);

    std::vector<Expected> want;
    std::vector<double> score, deviation, magnitude;
    for (int s = 0; s < count; ++s) {
        const AttentionSequence& seq = sequences[size_t(s)];
        // What rounds to 16 bits: prefill.
        const bool vectors = dim % 4 == 0 && (!c.activations || row_stride % 4 == 0);
        const bool few = seq.rows <= attention::kDecodeRows && (count > 1 || max_rows <= attention::kDecodeRows) &&
                         (c.element != Element::f32 || vectors) && c.row_tiles == 0;
        const bool rounds = !few && !c.exact && dim <= attention::kMaxHeadDim && vectors && q_stride % 4 == 0;
        const double u = !rounds ? 0 : c.element == Element::bf16 ? 0x1p-8 : 0x1p-11;
        const int times = c.element == Element::f32 || c.element == Element::i8 ? 2 : 1;  // roundings of a product
        for (int i = 0; i < seq.rows; ++i)
            for (int h = 0; h < c.heads; ++h) {
                const int position = seq.keys - seq.rows + i;
                const int first = c.window > 0 ? std::max(0, position + 1 - c.window) : 0;
                const int last = c.causal || c.window > 0 ? position + 1 : seq.keys;
                const auto at = [&](const Stored& x, int key, int d) {
                    return x.values[size_t((row_of[size_t(s)][size_t(key)] * c.kv_heads + h / group) * dim + d)];
                };
                score.clear(), deviation.clear(), magnitude.clear();
                double peak = -INFINITY, sum = 0;
                for (int key = first; key < last; ++key) {
                    double dot = 0, square = 0, all = 0;
                    for (int d = 0; d < dim; ++d) {
                        const double product = double(q[size_t((seq.first_row + i) * q_stride + h * dim + d)]) *
                                               at(k, key, d) * double(a.scale);
                        dot += product, square += product * product, all += std::abs(product);
                    }
                    if (c.softcap > 0) dot = double(c.softcap) * std::tanh(dot / double(c.softcap));
                    if (c.bias > 0) dot += double(bias[size_t(((c.bias == 2 ? h : 0) * rows + i) * max_keys + key)]);
                    score.push_back(dot), deviation.push_back(std::sqrt(square * times / 3) * u);
                    magnitude.push_back((dim + 8) * 0x1p-24 * all + 0x1p-21 * (std::abs(dot) + double(c.softcap) + 1));
                    peak = std::max(peak, dot);
                }
                for (double& x : score) sum += x = peak == -INFINITY ? 0 : std::exp(x - peak);
                for (int d = 0; d < dim; ++d) {
                    double o = 0, squares = 0, scores = 0, small = 0, magnitudes = 0;
                    for (int key = first; key < last; ++key)
                        if (sum > 0) o += score[size_t(key - first)] / sum * at(v, key, d);
                    for (int key = first; key < last && sum > 0; ++key) {
                        const size_t j = size_t(key - first);
                        const double w = score[j] / sum, value = at(v, key, d);
                        squares += w * value * w * value * times / 3;
                        scores += w * std::abs(value - o) * deviation[j];
                        magnitudes +=
                            w * std::abs(value - o) * magnitude[j] + w * std::abs(value) * 2 * (last - first + 8) * 0x1p-24;
                        if (rounds) small += 0x1p-25 * std::abs(value) / sum;
                    }
                    want.push_back({o, 6 * (std::sqrt(squares) * u + scores) + magnitudes + small + 1e-30});
                }
            }
    }
    std::vector<float> got, all = error == cudaSuccess ? out.host() : std::vector<float>();
    for (int row = 0; row < rows && !all.empty(); ++row)
        got.insert(got.end(), &all[size_t(row * q_stride)], &all[size_t(row * q_stride + c.heads * dim)]);
    check(name_of(c) + (hide_all ? " hidden" : ""), error, got, want);
}

Case decode(Element e, int heads, int kv_heads, int dim, std::vector<std::pair<int, int>> sequences, int splits = 1) {
    Case c;
    c.element = e, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = dim, c.sequences = std::move(sequences);
    c.splits = splits, c.table = splits != 2;
    return c;
}

/// Variations: causal, window, softcap, bias.
Case vary(Case c, bool causal, int window, float softcap, int bias) {
    c.causal = causal, c.window = window, c.softcap = softcap, c.bias = bias;
    return c;
}

Case exact(Case c) {
    c.exact = true;
    return c;
}

Case activations(int heads, int dim, std::vector<std::pair<int, int>> sequences, int gap) {
    Case c;
    c.element = Element::f32, c.activations = true, c.causal = false, c.gap = gap;
    c.heads = c.kv_heads = heads, c.head_dim = dim, c.sequences = std::move(sequences);
    return c;
}

Case tiles(Case c, int row_tiles) {
    c.row_tiles = row_tiles;
    return c;
}

constexpr Element f32 = Element::f32, f16 = Element::f16, bf16 = Element::bf16, i8 = Element::i8;

void few_queries() {
    for (const Element e : {f32, f16, bf16, i8}) {
        run_case(decode(e, 8, 1, 128, {{1, 200}}, 2));
        run_case(decode(e, 2, 2, 64, {{1, 65}, {1, 1}, {1, 64}}, 5));
        run_case(decode(e, 3, 1, 256, {{1, 63}}));
        run_case(vary(decode(e, 4, 2, 80, {{2, 130}}, 5), true, 70, 0, 0));
        run_case(vary(decode(e, 2, 1, 20, {{4, 65}}), true, 0, 5, 2));
    }
    run_case(decode(f16, 1, 1, 8, {{1, 1}}));
    run_case(decode(f16, 6, 2, 192, {{3, 200}}, 64));
    run_case(decode(i8, 2, 2, 100, {{1, 64}}, 2));
    run_case(vary(decode(bf16, 2, 1, 128, {{4, 200}}, 2), true, 3, 20, 1));
    run_case(vary(decode(f16, 2, 1, 64, {{2, 70}}), false, 0, 0, 1));
    run_case(vary(decode(f16, 2, 1, 64, {{3, 0}, {1, 5}}, 2), false, 0, 0, 0));  // no keys: zeros
    run_case(vary(decode(f16, 2, 1, 64, {{2, 70}}, 2), false, 0, 0, 1), true);
    run_case(exact(decode(f32, 2, 1, 64, {{1, 100}}, 2)));
}

void many_queries() {
    for (const Element e : {f32, f16, bf16, i8}) {
        run_case(decode(e, 2, 1, 64, {{65, 65}}));
        run_case(decode(e, 1, 1, 128, {{17, 200}}, 2));
        run_case(vary(decode(e, 2, 2, 32, {{64, 130}}), true, 66, 0, 0));
    }
    run_case(decode(f16, 1, 1, 256, {{17, 100}}));
    run_case(decode(bf16, 1, 1, 192, {{17, 65}}));
    run_case(decode(i8, 3, 1, 80, {{17, 64}}));
    run_case(decode(f16, 3, 1, 100, {{5, 70}}, 2));
    run_case(decode(f16, 1, 1, 20, {{17, 63}}));
    run_case(decode(bf16, 8, 1, 8, {{6, 7}}));
    run_case(vary(decode(f16, 2, 1, 64, {{65, 200}}), true, 3, 10, 2));
    run_case(vary(decode(bf16, 2, 1, 64, {{17, 70}}), false, 0, 0, 1));
    run_case(vary(decode(f16, 2, 1, 64, {{17, 70}}), false, 0, 0, 1), true);
    run_case(vary(decode(f16, 2, 1, 64, {{6, 0}}), false, 0, 0, 0));
    run_case(decode(f16, 4, 2, 64, {{1, 200}, {17, 65}, {3, 64}, {70, 130}}, 5));
    run_case(exact(decode(i8, 4, 2, 64, {{1, 200}, {17, 65}}, 5)));
    run_case(tiles(decode(f16, 2, 1, 64, {{130, 200}, {17, 17}}), 2));
    run_case(tiles(vary(decode(bf16, 1, 1, 128, {{129, 150}}), true, 50, 0, 0), 2));
    run_case(tiles(decode(f16, 1, 1, 128, {{40, 70}}), 2));
    run_case(vary(decode(bf16, 1, 1, 128, {{65, 150}}), true, 50, 30, 1));
    run_case(activations(2, 32, {{17, 17}, {1, 1}, {70, 70}}, 0));
    run_case(activations(2, 10, {{7, 7}, {2, 2}}, 0));
    run_case(activations(2, 64, {{9, 9}}, 1));
    run_case(activations(1, 64, {{20, 5}}, 4));  // against another sequence
}

void float32() {
    for (const Element e : {f32, f16, bf16, i8}) run_case(exact(decode(e, 2, 1, 64, {{17, 100}})));
    run_case(exact(decode(f32, 2, 1, 300, {{3, 65}})));
    run_case(exact(decode(f32, 1, 1, 100, {{5, 10}})));
    run_case(exact(decode(f32, 2, 2, 10, {{1, 64}}, 2)));
    run_case(exact(vary(decode(f32, 4, 2, 32, {{17, 130}}), true, 66, 5, 2)));
    run_case(exact(vary(decode(f32, 2, 1, 32, {{6, 20}}), false, 0, 0, 1)), true);
    run_case(exact(activations(2, 20, {{17, 17}, {6, 66}}, 3)));
}

/// A NaN in a query spoils its own row and head, and is not taken for a row that sees nothing.
void not_a_number(const char* name, int rows, bool exactly, int splits) {
    constexpr int kHeads = 2, kDim = 32, kKeys = 70;
    std::vector<float> q = normal(size_t(rows * kHeads * kDim));
    q[kDim + 3] = NAN;  // row 0, head 1
    const DeviceArray<float> device_q(q), kv(normal(size_t(kKeys * kHeads * kDim))), out(q.size());
    const DeviceArray<float> partials(size_t(rows * kHeads * splits * (kDim + 2)));
    const DeviceArray<AttentionSequence> sequences(std::vector<AttentionSequence>{{0, rows, 0, kKeys}});
    Attention a{};
    a.q = device_q.data, a.out = out.data, a.q_stride = a.out_stride = kHeads * kDim;
    a.k = a.v = {kv.data, Element::f32, kDim, kHeads * kDim, nullptr, 0};
    a.sequences = sequences.data, a.count = 1, a.heads = a.kv_heads = kHeads, a.head_dim = kDim, a.scale = 0.2f;
    a.max_rows = rows, a.max_keys = kKeys, a.exact = exactly, a.splits = splits, a.partials = partials.data;
    const cudaError_t error = run(a, nullptr);
    std::string problem = error == cudaSuccess ? "" : cudaGetErrorString(error);
    const std::vector<float> got = problem.empty() ? out.host() : std::vector<float>();
    for (size_t i = 0; i < got.size(); ++i)
        if (std::isnan(got[i]) != (i / kDim == 1))
            problem = "element " + std::to_string(i) + " is " + std::to_string(got[i]);
    report(name, problem);
}

void wrong_commands() {
    Attention a{};
    a.heads = a.kv_heads = a.head_dim = a.splits = 1;
    const auto expect = [&](const char* what, cudaError_t want) {
        report(what, run(a, nullptr) == want ? "" : "another status");
    };
    expect("no sequences", cudaSuccess);
    a.heads = 3, a.kv_heads = 2;
    expect("heads of no whole group", cudaErrorInvalidValue);
    a.kv_heads = 3, a.splits = 2;
    expect("splits without room", cudaErrorInvalidValue);
    a.splits = 1, a.k.element = Element::i8;
    expect("keys and values of two kinds", cudaErrorInvalidValue);
}

}  // namespace

int main(int argc, char** argv) {
    return run_all(argc, argv, [] {
        few_queries();
        many_queries();
        float32();
        not_a_number("decode of a NaN", 1, false, 1);
        not_a_number("split decode of a NaN", 2, false, 2);
        not_a_number("prefill of a NaN", 6, false, 1);
        not_a_number("exact attention of a NaN", 6, true, 1);
        wrong_commands();
        // Of all the cases: heads of 64 and 128 elements, whose rows fill the banks.
        for (const char* line : {"ldmatrix_x4(k, k_lane", "ldmatrix_x4_trans(v", "ldmatrix_x4(q[t]"})
            expect_conflict_free("attention::prefill_kernel<", line);
        expect_conflict_free("attention::decode_kernel<", "const float4 w =");
        expect_sectors("attention::decode_kernel<", "__ldg(reinterpret_cast<const uint4*>(row");
    });
}
