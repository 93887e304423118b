// Products with many rows on tensor cores, against double on weights rounded to bf16 as the kernel rounds them.
#include "accesses.h"
#include "cuda/kernels/launchers.h"
#include "linear_weights.h"

namespace {

using namespace test;
using namespace halfbyte::cuda;

constexpr float kUntouched = 12345.0f;

float round_bf16(float value) { return __bfloat162float(__float2bfloat16(value)); }

struct Product {
    const DeviceWeight* weight;
    bool bias, accumulate;
};

/// Room for split sums and the counters, which must be zero again afterwards.
struct Splits {
    DeviceArray<float> partials{size_t(kPartialFloats)};
    DeviceArray<uint32_t> counters{std::vector<uint32_t>(kCounters)};
};

/// x is given in bf16 and the weight rounded alike, so that float32 sums alone are left: each of the products of a feature, what
/// they are added to, and the sums of splits is cut off at 2^-23 of the greatest partial sum.
void gemm(const std::string& name, const std::vector<Product>& parts, size_t rows, int processors, Splits& splits) {
    const size_t cols = size_t(parts[0].weight->weight.cols), padded = (cols + 63) / 64 * 64;
    std::vector<float> x = normal(rows * cols);
    std::vector<__nv_bfloat16> rows_bf16(rows * padded, __float2bfloat16(0.0f));
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            x[r * cols + c] = round_bf16(x[r * cols + c]);
            rows_bf16[r * padded + c] = __float2bfloat16(x[r * cols + c]);
        }
    DeviceArray<__nv_bfloat16> device_x(rows_bf16);
    std::vector<std::unique_ptr<DeviceArray<float>>> ys, biases;
    std::vector<std::vector<float>> before, bias;
    Gemm command{};
    command.x = device_x.data, command.rows = int32_t(rows), command.parts = int32_t(parts.size());
    command.partials = splits.partials.data, command.counters = splits.counters.data;
    for (size_t i = 0; i < parts.size(); i++) {
        const size_t features = size_t(parts[i].weight->weight.rows), y_stride = features + i;
        bias.push_back(parts[i].bias ? normal(features) : std::vector<float>(features));
        before.push_back(parts[i].accumulate ? normal(rows * y_stride) : std::vector<float>(rows * y_stride, NAN));
        for (size_t r = 0; r < rows; r++)
            for (size_t c = features; c < y_stride; c++) before.back()[r * y_stride + c] = kUntouched;
        ys.push_back(std::make_unique<DeviceArray<float>>(before.back()));
        biases.push_back(std::make_unique<DeviceArray<float>>(bias.back()));
        command.part[i] = {parts[i].weight->tiled, parts[i].bias ? biases.back()->data : nullptr, ys.back()->data,
                           int64_t(y_stride), int32_t(parts[i].accumulate)};
    }
    set_multiprocessors(processors);
    const cudaError_t error = run(command, nullptr);
    for (size_t i = 0; i < parts.size(); i++) {
        const DeviceWeight& w = *parts[i].weight;
        const size_t features = size_t(w.weight.rows), y_stride = features + i;
        std::vector<float> rounded(w.values.size());
        for (size_t e = 0; e < rounded.size(); e++) rounded[e] = round_bf16(w.values[e]);
        std::vector<Expected> want(rows * y_stride);
        for (size_t r = 0; r < rows; r++)
            for (size_t f = 0; f < y_stride; f++) {
                Expected& out = want[r * y_stride + f];
                out = {kUntouched, 0};
                if (f >= features) continue;
                const double added = bias[i][f] + (parts[i].accumulate ? before[i][r * y_stride + f] : 0.0f);
                double sum = added, size = std::abs(added) + std::abs(double(bias[i][f]));
                for (size_t c = 0; c < cols; c++) {
                    const double term = double(rounded[f * cols + c]) * double(x[r * cols + c]);
                    sum += term, size += std::abs(term);
                }
                // One rounding for every 16 products, and one for each split, bias and y.
                out = {sum, size * 0x1p-23 * (double(padded) / 16 + 8)};
            }
        check("gemm " + name + " x " + std::to_string(rows) + ", part " + std::to_string(i), error, ys[i]->host(), want);
    }
    for (const uint32_t counter : splits.counters.host())
        if (counter != 0) return report("gemm " + name, "a counter was left behind");
}

void cases() {
    Splits splits;
    struct Case {
        std::string name;
        Weight weight;
    };
    const std::vector<Case> weights = {
        {"nf4 [17, 320]", bnb4(nf4_storage(), 17, 320, 64, 0)},
        {"nf4 [130, 320] nested", bnb4(nf4_storage(), 130, 320, 64, 16)},
        {"fp4 [15, 96] blocks of 32, nested", bnb4(fp4_storage(), 15, 96, 32, 4)},
        {"nf4 [33, 128] blocks of 128", bnb4(nf4_storage(), 33, 128, 128, 0)},
        {"codes [17, 48] blocks of 16, offsets", plain4(17, 48, 16, true)},
        {"codes [16, 320] blocks of 32, offsets", plain4(16, 320, 32, true)},
        {"codes [5, 100] one a row", plain4(5, 100, 100, true)},
        {"int8 [17, 320] blocks of 64", int8(17, 320, 64)},
        {"bytes [15, 48] blocks of 16, offsets", plain8(15, 48, 16, true)},
        {"LLM.int8() [17, 100]", int8_rows(17, 100)},
        {"f16 [140, 100]", floats(DType::f16, 140, 100)},
        {"bf16 [100, 48]", floats(DType::bf16, 100, 48)},
        {"f32 [15, 320]", floats(DType::f32, 15, 320)},
    };
    int turn = 0;
    for (const Case& c : weights) {
        const DeviceWeight w(c.weight);
        const size_t rows[] = {1, 7, 17, 32, 33, 64, 65, 129};
        for (int i = 0; i < 3; ++i, ++turn)
            gemm(c.name, {{&w, turn % 2 == 0, turn % 3 == 0}}, rows[turn % 8], turn % 2 ? 132 : 1, splits);
    }
    // Several parts of several kinds, and splits.
    const DeviceWeight q(bnb4(nf4_storage(), 150, 1088, 64, 256)), k(bnb4(nf4_storage(), 20, 1088, 64, 0)),
        v(int8(16, 1088, 64)), b(floats(DType::bf16, 17, 1088));
    for (const size_t rows : {17, 40, 200})
        gemm("q, k, v, b", {{&q, true, false}, {&k, false, true}, {&v, true, true}, {&b, false, false}}, rows, 12, splits);
}

/// In the main loop no bank conflict, and no sector fetched for a part of it; seen by the race build.
void memory() {
    using namespace cudaemu::accesses;
    if (!available()) return;
    start();
    Splits splits;
    const DeviceWeight nf4(bnb4(nf4_storage(), 256, 512, 64, 256)), bytes(int8(256, 512, 64)),
        half(floats(DType::f16, 256, 512));
    for (const DeviceWeight* w : {&nf4, &bytes, &half})
        for (const size_t rows : {32, 64, 128}) gemm("memory", {{w, true, false}}, rows, 1, splits);
    stop();
    for (const char* line :
         {"cp_async_16(stage + x_place", "cp_async_16(stage + Shape::kRowsBytes", "ldmatrix_x4(b", "held[r][v] = codes",
          "level[e] = lane_table", "scale[half] = scales", "scales[b][thread]", "room[row * kPitch + (warp"})
        expect_conflict_free("gemm_kernel<", line);
    for (const char* line : {"cp_async_16(stage + x_place", "cp_async_16(stage + Shape::kRowsBytes", "*y = part.accumulate"})
        expect_sectors("gemm_kernel<", line);
}

}  // namespace

int main(int argc, char** argv) {
    return test::run_all(argc, argv, [] {
        cases();
        memory();
    });
}
