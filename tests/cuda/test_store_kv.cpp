// StoreKv against the CPU's rules: to nearest even, i8 with a scale for each head and row, zeros behind head_dim.
#include "cuda/kernels/launchers.h"
#include "harness.h"

using namespace halfbyte::cuda;
using namespace test;

namespace {

struct Case {
    Element element;
    int tokens, heads, head_dim;
    int gap;  // of the rows of x
};

int bytes_of(Element e) { return e == Element::f32 ? 4 : e == Element::i8 ? 1 : 2; }

/// What is stored for x, as bits; `inverse` as on the CPU.
uint32_t bits_of(Element e, float x, float inverse) {
    if (e == Element::f32) return __float_as_uint(x);
    if (e == Element::f16) return __half_as_ushort(__float2half_rn(x));
    if (e == Element::bf16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return uint32_t(int(std::nearbyint(x * inverse))) & 0xffu;
}

void run_case(const Case& c) {
    const int width = (c.head_dim + 15) / 16 * 16, bytes = bytes_of(c.element);
    const int64_t rows = (c.tokens + 127) / 64 * 64, stride = c.heads * c.head_dim + c.gap;
    std::vector<float> x = normal(size_t(c.tokens * stride), 3);
    if (c.tokens > 2) {
        for (int d = 0; d < c.head_dim; ++d) x[size_t(stride + d)] = 0;  // a row of zeros
        x[size_t(2 * stride)] = INFINITY;                                // shows in the scale of i8
    }
    std::vector<int32_t> target(size_t(rows), 0);
    for (size_t i = 0; i < target.size(); ++i) target[i] = int32_t(i);
    std::shuffle(target.begin(), target.end(), generator());
    target.resize(size_t(c.tokens));
    if (c.tokens > 3) target[3] = -1;  // no row: left out
    if (c.tokens > 4) target[4] = int32_t(rows);

    std::vector<uint8_t> want(size_t(c.heads * rows * width * bytes), 0xff);
    std::vector<float> want_scales(size_t(c.heads * rows), __uint_as_float(0xffffffffu));
    for (int t = 0; t < c.tokens; ++t)
        for (int h = 0; h < c.heads && target[size_t(t)] >= 0 && target[size_t(t)] < rows; ++h) {
            const float* from = &x[size_t(t * stride + h * c.head_dim)];
            const int64_t row = h * rows + target[size_t(t)];
            float most = 0, bad = 0;
            for (int d = 0; d < c.head_dim; ++d) most = std::fmax(most, std::fabs(from[d])), bad += from[d] * 0.0f;
            const float inverse = bad == 0 && most > 1e-30f ? 127.0f / most : 0.0f;
            want_scales[size_t(row)] = most / 127.0f + bad;
            for (int d = 0; d < width; ++d) {
                // What a row of infinities holds as i8 is left open: its scale is NaN.
                const uint32_t bits =
                    d < c.head_dim && (c.element != Element::i8 || bad == 0) ? bits_of(c.element, from[d], inverse) : 0;
                std::memcpy(&want[size_t((row * width + d) * bytes)], &bits, size_t(bytes));
            }
        }

    const DeviceArray<float> device_x(x);
    const DeviceArray<int32_t> device_target(target);
    const DeviceArray<uint8_t> data(want.size());
    const DeviceArray<float> scales(want_scales.size());
    StoreKv command{};
    command.x = device_x.data, command.x_stride = stride, command.target = device_target.data;
    command.data = data.data, command.scales = c.element == Element::i8 ? scales.data : nullptr, command.element = c.element;
    command.tokens = c.tokens, command.heads = c.heads, command.head_dim = c.head_dim, command.rows = rows;
    const std::string name = "store_kv element " + std::to_string(int(c.element)) + ", " + std::to_string(c.tokens) + " x " +
                             std::to_string(c.heads) + " x " + std::to_string(c.head_dim);
    const cudaError_t error = run(command, nullptr);
    if (error != cudaSuccess) return report(name, cudaGetErrorString(error));
    std::vector<uint8_t> got = data.host();
    std::string problem;
    if (c.element == Element::i8) {
        const std::vector<float> got_scales = scales.host();
        for (size_t i = 0; i < got_scales.size(); ++i) {
            const bool both_nan = std::isnan(got_scales[i]) && std::isnan(want_scales[i]);
            if (!both_nan && got_scales[i] != want_scales[i]) problem = "scale " + std::to_string(i) + " differs";
            if (both_nan)  // unwritten, or as said above
                std::copy_n(&want[i * size_t(width)], width, &got[i * size_t(width)]);
        }
    }
    for (size_t i = 0; i < got.size() && problem.empty(); ++i)
        if (got[i] != want[i]) problem = "byte " + std::to_string(i) + " differs";
    report(name, problem);
}

}  // namespace

int main(int argc, char** argv) {
    return run_all(argc, argv, [] {
        for (const Element e : {Element::f32, Element::f16, Element::bf16, Element::i8})
            for (const Case& c : {Case{e, 1, 1, 64, 0}, Case{e, 5, 3, 8, 4}, Case{e, 4, 2, 20, 0}, Case{e, 7, 2, 100, 1},
                                  Case{e, 3, 1, 5, 0}, Case{e, 66, 2, 128, 0}, Case{e, 4, 1, 256, 0}, Case{e, 3, 1, 300, 4}})
                run_case(c);
        StoreKv nothing{};
        nothing.heads = nothing.head_dim = 1;
        report("no tokens", run(nothing, nullptr) == cudaSuccess ? "" : "an error");
        nothing.element = Element::i8, nothing.tokens = 1;
        report("i8 without scales", run(nothing, nullptr) == cudaErrorInvalidValue ? "" : "no error");
    });
}
