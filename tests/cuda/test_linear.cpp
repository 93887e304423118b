// Products with few rows, products in float32, rows of a table: against the storage's own values, in double.
#include "cuda/kernels/launchers.h"
#include "linear_weights.h"

namespace {

using namespace test;
using namespace halfbyte::cuda;

constexpr float kUntouched = 12345.0f;

/// Rows of x `stride` apart, NaN between them: they must not be read.
std::vector<float> strided(size_t rows, size_t cols, size_t stride) {
    std::vector<float> values = normal(rows * cols), out(rows * stride - (stride - cols), NAN);
    for (size_t r = 0; r < rows; r++)
        std::copy_n(values.begin() + int64_t(r * cols), cols, out.begin() + int64_t(r * stride));
    return out;
}

void embed(const std::string& name, const DeviceWeight& w, bool accumulate) {
    const size_t cols = size_t(w.weight.cols), stride = cols + 3;
    std::vector<int32_t> ids;
    for (int i = 0; i < 9; i++) ids.push_back(int32_t(generator()() % uint64_t(w.weight.rows)));
    ids.push_back(int32_t(w.weight.rows - 1));
    const std::vector<float> before = normal(ids.size() * stride);
    DeviceArray<int32_t> device_ids(ids);
    DeviceArray<float> out(before);
    const cudaError_t error =
        run(Embed{w.tiled, device_ids.data, out.data, int64_t(stride), int32_t(ids.size()), accumulate}, nullptr);
    std::vector<Expected> want(before.size());
    for (size_t i = 0; i < ids.size(); i++)
        for (size_t c = 0; c < stride; c++) {
            const float old = before[i * stride + c], value = c < cols ? w.values[size_t(ids[i]) * cols + c] : 0;
            want[i * stride + c].value = c >= cols ? old : accumulate ? old + value : value;
        }
    check("embed " + name, error, out.host(), want);
}

/// What y may be missed by: `weight` is the relative error of level * scale, `x` that of x; each float32 sum has at most `terms`
/// rounded steps of 2^-23 (tensor cores cut off what does not fit).
struct Bound {
    double weight, x, terms;
};

Expected expected(const DeviceWeight& w, const float* x, size_t row, double bias, double before, const Bound& bound) {
    const size_t cols = size_t(w.weight.cols);
    double sum = bias + before, size = std::abs(bias) + std::abs(before), product = 0;
    for (size_t c = 0; c < cols; c++) {
        const size_t at = row * cols + c;
        sum += double(w.values[at]) * double(x[c]);
        product += double(w.product[at]) * std::abs(double(x[c]));
        size += double(w.product[at] + w.offset[at]) * std::abs(double(x[c]));
    }
    return {sum, product * bound.weight + size * (bound.x + bound.terms * 0x1p-23)};
}

struct Product {
    const DeviceWeight* weight;
    bool bias, accumulate;
};

/// y of each part between guards, run by `command`.
template <class Run>
void linear(const std::string& name, const std::vector<Product>& parts, size_t rows, size_t stride_extra, const Bound& bound,
            Run command) {
    const size_t cols = size_t(parts[0].weight->weight.cols), stride = cols + stride_extra;
    const std::vector<float> x = strided(rows, cols, stride);
    DeviceArray<float> device_x(x);
    std::vector<std::unique_ptr<DeviceArray<float>>> ys, biases;
    std::vector<std::vector<float>> before, bias;
    std::vector<LinearPart> linear_parts;
    for (const Product& p : parts) {
        const size_t features = size_t(p.weight->weight.rows), y_stride = features + stride_extra;
        bias.push_back(p.bias ? normal(features) : std::vector<float>(features));
        before.push_back(p.accumulate ? normal(rows * y_stride) : std::vector<float>(rows * y_stride, NAN));
        for (size_t r = 0; r < rows; r++)
            for (size_t c = features; c < y_stride; c++) before.back()[r * y_stride + c] = kUntouched;
        ys.push_back(std::make_unique<DeviceArray<float>>(before.back()));
        biases.push_back(p.bias ? std::make_unique<DeviceArray<float>>(bias.back()) : nullptr);
        linear_parts.push_back(
            {p.weight->tiled, p.bias ? biases.back()->data : nullptr, ys.back()->data, int64_t(y_stride), p.accumulate});
    }
    const cudaError_t error = command(device_x.data, int64_t(stride), linear_parts);
    for (size_t i = 0; i < parts.size(); i++) {
        const size_t features = size_t(parts[i].weight->weight.rows), y_stride = features + stride_extra;
        std::vector<Expected> want(rows * y_stride);
        for (size_t r = 0; r < rows; r++)
            for (size_t f = 0; f < y_stride; f++)
                want[r * y_stride + f] = f >= features
                                             ? Expected{kUntouched, 0}
                                             : expected(*parts[i].weight, x.data() + r * stride, f, bias[i][f],
                                                        parts[i].accumulate ? before[i][r * y_stride + f] : 0, bound);
        check(name + ", part " + std::to_string(i), error, ys[i]->host(), want);
    }
}

void linear_f32(const std::string& name, const DeviceWeight& w, size_t rows, bool bias, bool accumulate) {
    // A product and a sum for each column, decoding's two roundings are in the values; bias and y.
    const Bound bound{0, 0, double(w.weight.cols) + 4};
    linear("linear_f32 " + name + " x " + std::to_string(rows), {{&w, bias, accumulate}}, rows, rows % 3, bound,
           [&](const float* x, int64_t stride, const std::vector<LinearPart>& parts) {
               return run(LinearF32{x, stride, int32_t(rows), parts[0]}, nullptr);
           });
}

/// Room for split sums and the counters, which must be zero again afterwards.
struct Splits {
    DeviceArray<float> partials{size_t(kPartialFloats)};
    DeviceArray<uint32_t> counters{std::vector<uint32_t>(kCounters)};
};

void gemv(const std::string& name, const std::vector<Product>& parts, size_t rows, size_t stride_extra, int processors,
          Splits& splits) {
    // float32: a product, a sum and the scale's for each column, sums over lanes, warps and splits, bias and y. Tensor cores: levels
    // are rounded to bf16 but for those of bytes and of bf16 itself; x is two bf16, what they leave is less than 2^-17 of it.
    const double cols = double(parts[0].weight->weight.cols);
    Bound bound{0, 0, 2 * cols + 40};
    if (rows > kGemvExactRows) {
        const Format format = parts[0].weight->plan.format;
        bound.x = 0x1p-17;
        if (format != Format::int8 && format != Format::bf16) bound.weight = 0x1p-9;
    }
    set_multiprocessors(processors);
    linear("gemv " + name + " x " + std::to_string(rows) + ", " + std::to_string(processors) + " processors", parts, rows,
           stride_extra, bound, [&](const float* x, int64_t stride, const std::vector<LinearPart>& linear_parts) {
               Gemv command{};
               command.x = x, command.x_stride = stride;
               command.rows = int32_t(rows), command.parts = int32_t(linear_parts.size());
               std::copy(linear_parts.begin(), linear_parts.end(), command.part);
               command.partials = splits.partials.data, command.counters = splits.counters.data;
               return run(command, nullptr);
           });
    for (const uint32_t counter : splits.counters.host())
        if (counter != 0) return report("gemv " + name, "a counter was left behind");
}

void cases() {
    Splits splits;
    struct Case {
        std::string name;
        Weight weight;
    };
    const std::vector<Case> weights = {
        {"nf4 [1, 64]", bnb4(nf4_storage(), 1, 64, 64, 0)},
        {"nf4 [17, 320]", bnb4(nf4_storage(), 17, 320, 64, 0)},
        {"nf4 [100, 320] nested", bnb4(nf4_storage(), 100, 320, 64, 16)},
        {"fp4 [15, 96] blocks of 32, nested", bnb4(fp4_storage(), 15, 96, 32, 4)},
        {"nf4 [33, 128] blocks of 128", bnb4(nf4_storage(), 33, 128, 128, 0)},
        {"nf4 [9, 48] blocks across rows", bnb4(nf4_storage(), 9, 48, 64, 2)},
        {"nf4 [7, 33] odd rows", bnb4(nf4_storage(), 7, 33, 32, 0)},
        {"nf4 panels [17, 192]", panels(17, 192, 64, 0)},
        {"nf4 panels [50, 96] nested", panels(50, 96, 32, 8)},
        {"codes [17, 48] blocks of 16, offsets", plain4(17, 48, 16, true)},
        {"codes [16, 320] blocks of 32, offsets", plain4(16, 320, 32, true)},
        {"codes [5, 100] one a row", plain4(5, 100, 100, true)},
        {"codes [18, 99] one a row, odd", plain4(18, 99, 99, false)},
        {"codes [4, 96] blocks of 24", plain4(4, 96, 24, true)},
        {"int8 [17, 320] blocks of 64", int8(17, 320, 64)},
        {"int8 [100, 96] blocks of 32", int8(100, 96, 32)},
        {"bytes [15, 48] blocks of 16, offsets", plain8(15, 48, 16, true)},
        {"bytes [1, 16] blocks of 16", plain8(1, 16, 16, false)},
        {"LLM.int8() [17, 100]", int8_rows(17, 100)},
        {"f16 [17, 100]", floats(DType::f16, 17, 100)},
        {"bf16 [100, 48]", floats(DType::bf16, 100, 48)},
        {"bf16 [1, 16]", floats(DType::bf16, 1, 16)},
        {"f32 [15, 320]", floats(DType::f32, 15, 320)},
        {"f64 [17, 100]", f64(17, 100)},
    };
    int turn = 0;
    for (const Case& c : weights) {
        const DeviceWeight w(c.weight);
        ++turn;
        embed(c.name, w, turn % 2 == 0);
        linear_f32(c.name, w, turn % 4 == 0 ? 65 : size_t(turn % 5 + 1), turn % 2 == 0, turn % 3 == 0);
        for (const size_t rows : {1, 2, 3, 16})
            gemv(c.name, {{&w, turn % 2 == 0, turn % 3 == 0}}, rows, rows % 3, turn % 2 ? 132 : 1, splits);
    }

    // Several parts; splits; columns beyond what lies in shared memory at a time.
    const DeviceWeight q(bnb4(nf4_storage(), 70, 2176, 64, 256)), k(bnb4(nf4_storage(), 20, 2176, 64, 0)),
        v(bnb4(nf4_storage(), 16, 2176, 128, 64)), o(plain4(33, 2176, 32, true)), b(floats(DType::bf16, 1, 2176)),
        i(int8(35, 2176, 64));
    for (const size_t rows : {1, 2, 5, 8, 9, 15}) {
        gemv("q, k, v", {{&q, true, false}, {&k, false, true}, {&v, true, true}}, rows, 1, 12, splits);
        gemv("q, o, k, b", {{&q, true, false}, {&o, false, true}, {&k, true, true}, {&b, false, false}}, rows, 0, 132,
             splits);
        gemv("i", {{&i, true, false}}, rows, 2, 132, splits);
    }
    const DeviceWeight wide(bnb4(nf4_storage(), 17, 4288, 64, 128)), wide_int8(int8(18, 4192, 32));
    for (const size_t rows : {1, 2, 4}) {
        gemv("wide", {{&wide, false, false}}, rows, 0, 1, splits);
        gemv("wide int8", {{&wide_int8, false, true}}, rows, 0, 2, splits);
    }
}

/// Weights come in whole sectors, and the tables of levels and the rows of x have no bank conflicts; seen by the race build.
void memory() {
    using namespace cudaemu::accesses;
    if (!available()) return;
    start();
    Splits splits;
    const DeviceWeight nf4(bnb4(nf4_storage(), 96, 512, 64, 256)), bytes(int8(96, 512, 64)),
        half(floats(DType::f16, 96, 512));
    for (const DeviceWeight* w : {&nf4, &bytes, &half})
        for (const size_t rows : {1, 2, 5, 16}) gemv("memory", {{w, true, false}}, rows, 0, 2, splits);
    for (const DeviceWeight* w : {&nf4, &bytes, &half}) linear_f32("memory", *w, 64, true, false);
    stop();
    for (const char* kernel : {"gemv_exact_kernel<", "gemv_mma_kernel<"}) expect_sectors(kernel, "load_once(");
    expect_conflict_free("gemv_exact_kernel<", "lop3<0xea>(at[e]");
    expect_conflict_free("gemv_mma_kernel<", "pairs + lop3<0xea>");
    expect_conflict_free("gemv_mma_kernel<", "const uint4 both = xs");
    expect_conflict_free("gemv_mma_kernel<", "xs[i] = both");
    for (const char* line : {"xs[place(k, m)] =", "ws[place(", "float4*>(xs + place(", "float4*>(ws + place("})
        expect_conflict_free("linear_f32_kernel<", line);
}

}  // namespace

int main(int argc, char** argv) {
    return test::run_all(argc, argv, [] {
        cases();
        memory();
    });
}
