// linear(), embed() and lora().
#include <algorithm>
#include <cmath>
#include <cstring>

#include "storage/encode.h"
#include "storage/storage.h"
#include "values.h"

using namespace halfbyte;

namespace values {

namespace {

struct Case {
    std::string name;
    Weight weight;
    bool rounds;  ///< precisions below float32 may round it and the activations to integers
};

/// A block format of GGUF: where in a block the unit of its scales lies, and that of its offsets (0: it has none).
struct Blocks {
    const Storage& storage;
    int64_t elements, bytes, unit_at, offset_at;
    float unit, offset;  ///< the smallest unit; offset over unit that makes the mean zero
};

/// Random codes and factors, units of one to three times the smallest.
Weight ggml_blocks(const Blocks& blocks, int64_t n, int64_t k) {
    Weight weight;
    weight.rows = n, weight.cols = k, weight.storage = &blocks.storage, weight.block_size = blocks.storage.block_size();
    weight.planes[0] = allocate_plane(size_t(n * k / blocks.elements * blocks.bytes));
    auto* data = static_cast<uint8_t*>(const_cast<void*>(weight.planes[0].data));
    for (size_t i = 0; i < weight.planes[0].bytes; i++) data[i] = uint8_t(random_below(256));
    for (int64_t i = 0; i < int64_t(weight.planes[0].bytes); i += blocks.bytes) {
        const float unit = blocks.unit * float(16 + random_below(32)) / 16;
        const uint16_t halves[2] = {f32_to_f16(unit), f32_to_f16(unit * blocks.offset)};
        std::memcpy(data + i + blocks.unit_at, &halves[0], sizeof halves[0]);
        if (blocks.offset_at != 0) std::memcpy(data + i + blocks.offset_at, &halves[1], sizeof halves[1]);
    }
    return weight;
}

std::vector<Case> cases(int64_t n, int64_t k, ThreadPool& pool) {
    const std::vector<float> source = random_floats(n * k);
    const auto encoded = [&](std::string_view format, int block, bool nested) {
        return encode(source.data(), n, k, {format, block, nested}, pool);
    };
    const int block = k % 64 == 0 ? 64 : 32;
    std::vector<Case> list{{"f32", encoded("f32", 0, false), k % 32 == 0},    {"f16", encoded("f16", 0, false), k % 32 == 0},
                           {"bf16", encoded("bf16", 0, false), k % 32 == 0},  {"nf4", encoded("nf4", block, false), true},
                           {"nf4 nested", encoded("nf4", block, true), true}, {"fp4", encoded("fp4", block, true), true}};
    if (k % 128 == 0) list.push_back({"nf4 of 128", encoded("nf4", 128, true), true});
    if (k % 32 == 0) {
        list.push_back({"int8", encoded("int8", 0, false), true});
        list.push_back({"q4_0", ggml_blocks({q4_0_storage(), 32, 18, 0, 0, 1.0f / 16, 0}, n, k), true});
        list.push_back({"q4_1", ggml_blocks({q4_1_storage(), 32, 20, 0, 2, 1.0f / 16, -7.4f}, n, k), true});
        list.push_back({"q5_1", ggml_blocks({q5_1_storage(), 32, 24, 0, 2, 1.0f / 32, -15.3f}, n, k), true});
    }
    if (k % 256 == 0) {
        // Bytes with a scale for 256, and words from blocks of 16.
        list.push_back({"q3_k", ggml_blocks({q3_k_storage(), 256, 110, 108, 0, 1.0f / 256, 0}, n, k), true});
        list.push_back({"q6_k", ggml_blocks({q6_k_storage(), 256, 210, 208, 0, 1.0f / 4096, 0}, n, k), true});
    }
    // Half floats below 2^-14 have fewer digits, and a conversion that flushes them to zero would go unseen among others.
    std::vector<float> tiny = source;
    for (float& value : tiny) value *= 1e-6f;
    list.push_back({"f16 subnormal", encode(tiny.data(), n, k, {"f16", 0, false}, pool), k % 32 == 0});
    return list;
}

/// y = x w^T + bias (+ before). `rounding` of x, relative to the largest of a row, and of w likewise: what integers cost.
Expected product(const std::vector<float>& x, const std::vector<float>& w, const std::vector<float>& bias,
                 const std::vector<float>& before, int64_t m, int64_t k, int64_t n, double x_rounding, double w_rounding) {
    Expected y(m, n);
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < n; c++) {
            double sum = double(bias[size_t(c)]) + double(before[y.at(r, c)]), sizes = 0, xs = 0, ws = 0, x_peak = 0,
                   w_peak = 0;
            double terms = std::fabs(double(bias[size_t(c)])) + std::fabs(double(before[y.at(r, c)]));
            for (int64_t i = 0; i < k; i++) {
                const double a = double(x[size_t(r * k + i)]), b = double(w[size_t(c * k + i)]);
                sum += a * b, sizes += std::fabs(a * b), xs += std::fabs(a), ws += std::fabs(b);
                x_peak = std::max(x_peak, std::fabs(a)), w_peak = std::max(w_peak, std::fabs(b));
            }
            y.value[y.at(r, c)] = sum;
            y.bound[y.at(r, c)] = double(k + 4) * kRounding * (sizes + terms) +
                                  x_rounding * x_peak * (ws + w_rounding * w_peak) + w_rounding * w_peak * xs;
        }
    return y;
}

/// What integers cost, in units of the largest value: half a unit of 8191 (or 127) for activations; for levels half a unit of at
/// least half of 4095 (cpu/panels.cpp looks for the best in that range; bytes: about 124), and where blocks have offsets their
/// levels reach twice as far as their values.
constexpr double kHighX = 0.5 / 8191, kHighW = 2.0 / 4095, kFastX = 0.5 / 127, kFastW = 2.0 / 120;
/// What README.md promises of `high`, for a mean over many outputs.
constexpr double kHighMean = 3e-4;

}  // namespace

void linear(const std::vector<Subject>& subjects, int64_t m, int64_t k, int64_t n) {
    const std::vector<float> x = random_floats(m * k), bias = random_floats(n), before = random_floats(m * n);
    const std::vector<float> nothing(size_t(m * n), 0.0f);
    for (const Case& c : cases(n, k, subjects[0].device->host_pool())) {
        std::vector<float> w(static_cast<size_t>(n * k));
        decode(c.weight, w.data());
        const auto expect = [&](double x_rounding, double w_rounding) {
            return product(x, w, bias, before, m, k, n, x_rounding, w_rounding);
        };
        const Expected exact = expect(0, 0), high = c.rounds ? expect(kHighX, kHighW) : exact,
                       fast = c.rounds ? expect(kFastX, kFastW) : exact;
        for (const Subject& s : subjects) {
            const Weight uploaded = s.device->upload(c.weight);
            const Expected& expected = s.precision == Precision::float32 ? exact
                                       : s.precision == Precision::high  ? high
                                                                         : fast;
            std::vector<float> y = before, in = x;
            const Tensor input(in.data(), m, k), output(y.data(), m, n);
            LinearPart part{&uploaded, bias.data(), output, true};
            s.device->linear(input, {&part, 1});
            compare(s, c.name + " linear onto " + std::to_string(k), y, expected);
            // Without `accumulate` and without a bias: the same sums, from zero.
            part.accumulate = false, part.bias = nullptr;
            s.device->linear(input, {&part, 1});
            Expected alone = expected;
            for (int64_t r = 0; r < m; r++)
                for (int64_t i = 0; i < n; i++)
                    alone.value[alone.at(r, i)] -= double(bias[size_t(i)]) + double(before[alone.at(r, i)]);
            compare(s, c.name + " linear " + std::to_string(k), y, alone);
            if (c.rounds && s.precision == Precision::high && k >= 32 && m * n >= 200)
                compare_mean(s, c.name + " linear " + std::to_string(k), y, alone, kHighMean);

            std::vector<int32_t> ids(static_cast<size_t>(m));
            for (int32_t& id : ids) id = int32_t(random_below(n));
            Expected rows(m, k);
            for (int64_t r = 0; r < m; r++)
                for (int64_t i = 0; i < k; i++) rows.value[rows.at(r, i)] = double(w[size_t(ids[size_t(r)] * k + i)]);
            std::vector<float> found(static_cast<size_t>(m * k));
            s.device->embed(s.device->upload_table(c.weight), ids, Tensor(found.data(), m, k), false);
            compare(s, c.name + " embed", found, rows);
        }
    }
}

void nan_stays_in_its_row(const std::vector<Subject>& subjects) {
    constexpr int64_t k = 128, n = 40;
    for (const Case& c : cases(n, k, subjects[0].device->host_pool()))
        for (const Subject& s : subjects)
            for (const int64_t m : {1, 3, 40}) {
                const Weight uploaded = s.device->upload(c.weight);
                std::vector<float> x = random_floats(m * k), clean(static_cast<size_t>(m * n)), found = clean;
                const auto run = [&](std::vector<float>& y) {
                    const LinearPart part{&uploaded, nullptr, Tensor(y.data(), m, n), false};
                    s.device->linear(Tensor(x.data(), m, k), {&part, 1});
                };
                run(clean);
                for (const float bad : {NAN, HUGE_VALF}) {
                    x[size_t(m / 2 * k + 99)] = bad;
                    run(found);
                    for (int64_t i = 0; i < m * n; i++) {
                        const float now = found[size_t(i)];
                        if (i / n == m / 2 ? !std::isfinite(now) : now == clean[size_t(i)]) continue;
                        fail(s, c.name + " linear",
                             std::to_string(bad) + " in row " + std::to_string(m / 2) + " of " + std::to_string(m) +
                                 ", row " + std::to_string(i / n) + " is " + std::to_string(now) + " where it was " +
                                 std::to_string(clean[size_t(i)]));
                        break;
                    }
                }
            }
}

void lora(const std::vector<Subject>& subjects, int64_t m, int64_t k, int64_t n) {
    constexpr int64_t kRanks[] = {5, 2};
    constexpr float kScales[] = {1.0f, 0.5f};
    constexpr DType kDTypes[2][2] = {{DType::f32, DType::f32}, {DType::f16, DType::bf16}};
    std::vector<float> matrices[2][2];   // of adapter i: A [rank, k], B [n, rank], as float32
    std::vector<uint16_t> halves[2][2];  // the same as stored, where that is half a float
    std::vector<LoraMatrices> adapters;
    for (int i = 0; i < 2; i++) {
        const void* stored[2];
        for (int j = 0; j < 2; j++) {
            std::vector<float>& values = matrices[i][j] = random_floats(kRanks[i] * (j == 0 ? k : n));
            const DType dtype = kDTypes[i][j];
            stored[j] = values.data();
            if (dtype == DType::f32) continue;
            for (float& value : values) {
                const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
                value = dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
                halves[i][j].push_back(half);
            }
            stored[j] = halves[i][j].data();
        }
        adapters.push_back({stored[0], stored[1], kDTypes[i][0], kDTypes[i][1], kRanks[i], k, n, kScales[i]});
    }
    std::vector<float> x = random_floats(m * k);
    const std::vector<float> before = random_floats(m * n);
    std::vector<int32_t> rows(static_cast<size_t>(m));
    for (int32_t& row : rows) row = int32_t(random_below(3)) - 1;
    Expected y(m, n);
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < n; c++) {
            double sum = double(before[y.at(r, c)]), sizes = std::fabs(sum);
            const int i = rows[size_t(r)];
            for (int64_t q = 0; i >= 0 && q < kRanks[i]; q++) {
                double inner = 0, inner_sizes = 0;
                for (int64_t j = 0; j < k; j++) {
                    const double term = double(x[size_t(r * k + j)]) * double(matrices[i][0][size_t(q * k + j)]);
                    inner += term, inner_sizes += std::fabs(term);
                }
                const double b = double(matrices[i][1][size_t(c * kRanks[i] + q)]) * double(kScales[i]);
                sum += inner * b, sizes += inner_sizes * std::fabs(b);
            }
            y.value[y.at(r, c)] = sum;
            y.bound[y.at(r, c)] = i < 0 ? 0 : double(k + kRanks[i] + 8) * kRounding * sizes;
        }
    for (const Subject& s : subjects) {
        std::vector<float> found = before;
        LinearAdapter first, second;
        first.lora = s.device->upload_lora(adapters[0]), second.lora = s.device->upload_lora(adapters[1]);
        const LinearAdapter* const pair[] = {&first, &second};
        std::vector<int32_t> lists[2];
        for (int64_t r = 0; r < m; r++)
            if (rows[size_t(r)] >= 0) lists[rows[size_t(r)]].push_back(int32_t(r));
        const AdapterRows of[] = {{lists[0].data(), int64_t(lists[0].size()), 1.0f},
                                  {lists[1].data(), int64_t(lists[1].size()), 1.0f}};
        s.device->adapt(Tensor(x.data(), m, k), pair, of, nullptr, Tensor(found.data(), m, n));
        compare(s, "lora " + std::to_string(k), found, y);
    }
}

}  // namespace values
