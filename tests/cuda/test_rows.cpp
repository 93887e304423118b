// Norms, activations, rotary embedding, the small ops and pooling against double. The unit of the tolerances is 2^-24, half a step
// of float32: what one operation may be off, in parts of its result.
#include "cuda/kernels/launchers.h"
#include "harness.h"

using namespace halfbyte::cuda;
using namespace test;

namespace {

constexpr double kUnit = 0x1p-24;

std::string text(const char* format, auto... values) {
    char out[200];
    std::snprintf(out, sizeof out, format, values...);
    return out;
}

/// Expectations of a matrix [rows, stride] of which [rows, cols] is written and the rest is not touched: `before`, or NaN.
struct Matrix {
    int64_t rows, cols, stride;
    std::vector<Expected> want;
    Matrix(int64_t r, int64_t c, int64_t s) : rows(r), cols(c), stride(s), want(size_t(r * s)) {}
    Expected& at(int64_t r, int64_t c) { return want[size_t(r * stride + c)]; }
    void compare(const std::string& name, cudaError_t error, const std::vector<float>& got,
                 const std::vector<float>& before) {
        std::vector<float> inner;
        std::vector<Expected> expected;
        bool kept = true;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < stride; ++c) {
                const size_t i = size_t(r * stride + c);
                if (c < cols)
                    inner.push_back(got[i]), expected.push_back(want[i]);
                else
                    kept = kept && std::memcmp(&got[i], &before[i], 4) == 0;
            }
        if (error == cudaSuccess && !kept) return report(name, "wrote between rows");
        check(name, error, inner, expected);
    }
};

double activated(Activation f, double x) {
    switch (f) {
        case Activation::none: return x;
        case Activation::relu: return x < 0 ? 0 : x;
        case Activation::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::silu: return x / (1 + std::exp(-x));
        case Activation::tanh: return std::tanh(x);
    }
    return NAN;
}

/// Units in which activated() may be missed: of x where 1 is added to what is nearly -1, else of the result.
double activation_error(Activation f, double x) {
    switch (f) {
        case Activation::none:
        case Activation::relu: return 0;
        case Activation::gelu: return 6 * kUnit * std::abs(x);       // argument 2, erff 4 of at most 1, sum, product
        case Activation::gelu_tanh: return 8 * kUnit * std::abs(x);  // argument 6 times at most 0.45, tanhf 4, ...
        case Activation::silu: return 8 * kUnit * std::abs(activated(f, x)) + 1e-37;  // expf 4, sum, quotient
        case Activation::tanh: return 4 * kUnit * std::abs(activated(f, x));
    }
    return 0;
}

struct TransformCase {
    Transform kind;
    Activation activation;
    int rows, cols, gap;
    bool in_place, bf16, only_bf16, beta;
    float offset = 0;  // of x: the mean that a variance must not drown in
};

void transform(const TransformCase& c) {
    const int64_t stride = c.cols + c.gap, padded = (c.cols + 63) / 64 * 64;
    std::vector<float> x = normal(size_t(c.rows * stride), 2);
    for (float& v : x) v += c.offset;
    if (c.kind == Transform::activation && c.cols > 8) x[0] = 40, x[1] = -40, x[2] = 100, x[3] = -100, x[4] = 0;
    const std::vector<float> up = normal(size_t(c.rows * (stride + 4))), gamma = normal(size_t(c.cols)),
                             beta = normal(size_t(c.cols));
    const DeviceArray<float> device_x(x), device_up(up), device_gamma(gamma), device_beta(beta);
    const DeviceArray<float> out(c.only_bf16 ? 0 : size_t(c.rows * stride));
    const DeviceArray<uint16_t> bf16(c.bf16 ? size_t(c.rows * padded) : 0);
    TransformRows command{};
    command.kind = c.kind, command.activation = c.activation;
    command.x = device_x.data, command.x_stride = stride;
    command.up = device_up.data, command.up_stride = stride + 4;
    command.gamma = device_gamma.data, command.beta = c.beta ? device_beta.data : nullptr;
    command.eps = 1e-5f, command.rows = c.rows, command.cols = c.cols;
    command.out = c.only_bf16 ? nullptr : c.in_place ? device_x.data : out.data;
    command.out_stride = stride;
    command.out_bf16 = c.bf16 ? bf16.data : nullptr, command.padded_cols = int32_t(padded);
    const cudaError_t error = run(command, nullptr);

    Matrix want(c.rows, c.cols, stride);
    // Of a sum: a chain in a thread, four in a group, five rounds in a warp, five among warps.
    const double depth = c.cols / (4.0 * 32) + 14;
    for (int r = 0; r < c.rows; ++r) {
        const float* row = &x[size_t(r * stride)];
        double mean = 0, magnitude = 0, variance = 0;
        for (int i = 0; i < c.cols; ++i) mean += row[i], magnitude += std::abs(row[i]);
        mean = c.kind == Transform::layer_norm ? mean / c.cols : 0;
        magnitude = c.kind == Transform::layer_norm ? magnitude / c.cols : 0;
        for (int i = 0; i < c.cols; ++i) variance += (row[i] - mean) * (row[i] - mean);
        const double factor = 1 / std::sqrt(variance / c.cols + double(command.eps));
        for (int i = 0; i < c.cols; ++i) {
            const double v = row[i];
            Expected& e = want.at(r, i);
            if (c.kind == Transform::rms_norm || c.kind == Transform::layer_norm) {
                const double product = (v - mean) * factor * double(gamma[size_t(i)]);
                e.value = product + (c.beta ? double(beta[size_t(i)]) : 0);
                // The mean's error moves all of them; half of the variance's, and root, quotient, two products.
                const double off = factor * std::abs(double(gamma[size_t(i)])) * depth * kUnit * magnitude;
                e.allowed = off * (1 + off) + std::abs(product) * (depth / 2 + 6) * kUnit + std::abs(e.value) * kUnit;
            } else if (c.kind == Transform::none) {
                e.value = v;
            } else {
                const double gate = c.kind == Transform::gated_activation ? double(up[size_t(r * (stride + 4) + i)]) : 1;
                e.value = activated(c.activation, v) * gate;
                e.allowed = activation_error(c.activation, v) * std::abs(gate) +
                            (c.kind == Transform::gated_activation ? kUnit * std::abs(e.value) + 1e-44 : 0);
            }
        }
    }
    const std::string name =
        text("transform %d activation %d [%d, %d + %d]%s%s%s", int(c.kind), int(c.activation), c.rows, c.cols, c.gap,
             c.in_place ? " in place" : "", c.bf16 ? " bf16" : "", c.beta ? " beta" : "");
    const std::vector<float> got = c.in_place ? device_x.host() : out.host();
    if (!c.only_bf16) want.compare(name, error, got, c.in_place ? x : std::vector<float>(x.size(), __uint_as_float(~0u)));
    if (!c.bf16) return;
    const std::vector<uint16_t> rounded = bf16.host();
    std::string problem;
    std::vector<float> values;
    std::vector<Expected> expected;
    for (int r = 0; r < c.rows; ++r)
        for (int i = 0; i < padded; ++i) {
            const uint16_t bits = rounded[size_t(r * padded + i)];
            if (i >= c.cols && bits != 0) problem = "not filled up with zeros";
            if (i >= c.cols) continue;
            if (c.only_bf16) {  // half a step of eight bits beyond what float32 may be missed by
                const Expected e = want.at(r, i);
                values.push_back(cudaemu::bf16_bits_to_float(bits));
                expected.push_back({e.value, (std::abs(e.value) + e.allowed) * 0x1p-8 + e.allowed});
            } else if (bits != __bfloat16_as_ushort(__float2bfloat16_rn(got[size_t(r * stride + i)]))) {
                problem = "bf16 is not the float32 result, rounded";
            }
        }
    report(name + " bf16", problem);
    if (c.only_bf16) check(name + " only bf16", error, values, expected);
}

void transforms() {
    for (const Transform kind : {Transform::rms_norm, Transform::layer_norm}) {
        const bool layer = kind == Transform::layer_norm;
        for (const int cols : {1, 3, 31, 64, 130, 513, 2048, 2052, 8193, 8200})
            for (const bool bf16 : {false, true})
                transform({kind, {}, 3, cols, cols % 3 * 4, cols % 2 == 0, bf16, false, layer && cols != 64});
        transform({kind, {}, 2, 768, 1, false, true, false, layer});  // no row but the first is aligned
        transform({kind, {}, 2, 100, 4, false, true, true, layer});   // bf16 alone
        transform({kind, {}, 2, 1024, 0, true, false, false, layer, 1000});
    }
    for (int f = 0; f <= int(Activation::tanh); ++f)
        for (const int cols : {1, 515, 1024}) {
            transform({Transform::activation, Activation(f), 2, cols, 4, cols == 1024, cols == 515, false, false});
            transform({Transform::gated_activation, Activation(f), 3, cols, 0, true, cols == 1024, false, false});
        }
    transform({Transform::none, {}, 3, 70, 2, false, true, true, false});
    transform({Transform::none, {}, 3, 576, 0, false, true, false, false});
    TransformRows nothing{};
    report("no rows", run(nothing, nullptr) == cudaSuccess ? "" : "refused");
    nothing.rows = -1;
    report("negative rows", run(nothing, nullptr) == cudaErrorInvalidValue ? "" : "accepted");
}

void rope(int rows, int heads, int head_dim, int half, bool interleaved, int gap, float magnitude) {
    const int64_t stride = int64_t(heads) * head_dim + gap;
    const std::vector<float> x = normal(size_t(rows * stride));
    std::vector<int32_t> positions = {1000000, 0, 1, 4095, 710, 355, 131071, 16777216, 2147483647, -7, 65537};
    positions.resize(size_t(rows), 12345);
    std::vector<float> frequencies(size_t(half), 1.0f);
    for (int i = 1; i < half; ++i) frequencies[size_t(i)] = float(std::pow(10000.0, -double(i) / half));
    const DeviceArray<float> device_x(x), device_frequencies(frequencies);
    const DeviceArray<int32_t> device_positions(positions);
    const Rope command{device_x.data,           stride,    rows,       heads, head_dim, half, device_positions.data,
                       device_frequencies.data, magnitude, interleaved};
    const cudaError_t error = run(command, nullptr);
    Matrix want(rows, int64_t(heads) * head_dim, stride);
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < heads; ++h) {
            const float* from = &x[size_t(r * stride + h * head_dim)];
            for (int d = 0; d < head_dim; ++d) want.at(r, h * head_dim + d) = {double(from[d]), 0};
            for (int i = 0; i < half; ++i) {
                const float angle = float(positions[size_t(r)]) * frequencies[size_t(i)];
                const double c = std::cos(double(angle)) * double(magnitude),
                             s = std::sin(double(angle)) * double(magnitude);
                const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
                const double a = from[first], b = from[second];
                // Cosine and sine 3, times magnitude 1, two products and a sum 2.
                const double allowed = 6 * kUnit * (std::abs(a) + std::abs(b)) * double(magnitude);
                want.at(r, h * head_dim + first) = {a * c - b * s, allowed};
                want.at(r, h * head_dim + second) = {b * c + a * s, allowed};
            }
        }
    want.compare(text("rope [%d, %d x %d] half %d%s", rows, heads, head_dim, half, interleaved ? " interleaved" : ""), error,
                 device_x.host(), x);
}

void small_ops(int rows, int cols, int gap) {
    const int64_t stride = cols + gap;
    const std::vector<float> x = normal(size_t(rows * stride)), y = normal(size_t(rows * (stride + 3))),
                             gain = normal(size_t(cols));
    const std::string shape = text(" [%d, %d + %d]", rows, cols, gap);
    {
        const DeviceArray<float> device_x(x), device_y(y);
        Matrix want(rows, cols, stride);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c)
                want.at(r, c) = {double(x[size_t(r * stride + c)] + y[size_t(r * (stride + gap % 4) + c)]), 0};
        const Add command{device_x.data, stride, device_y.data, stride + gap % 4, rows, cols};
        const cudaError_t error = run(command, nullptr);
        want.compare("add" + shape, error, device_x.host(), x);
    }
    {
        const DeviceArray<float> device_x(x), device_gain(gain);
        Matrix want(rows, cols, stride);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) want.at(r, c) = {double(x[size_t(r * stride + c)] * gain[size_t(c)]), 0};
        const ScaleColumns command{device_x.data, stride, device_gain.data, rows, cols};
        const cudaError_t error = run(command, nullptr);
        want.compare("scale_columns" + shape, error, device_x.host(), x);
    }
    const int64_t out_stride = stride + 4;
    const std::vector<float> untouched(size_t((rows + 2) * out_stride), __uint_as_float(~0u));
    {
        std::vector<int32_t> indices;
        for (int i = 0; i < rows + 2; ++i) indices.push_back((i * 7 + 1) % rows);
        const DeviceArray<float> device_x(x), out(untouched);
        const DeviceArray<int32_t> device_indices(indices);
        Matrix want(rows + 2, cols, out_stride);
        for (int r = 0; r < rows + 2; ++r)
            for (int c = 0; c < cols; ++c) want.at(r, c) = {double(x[size_t(indices[size_t(r)] * stride + c)]), 0};
        const GatherRows command{device_x.data, stride, device_indices.data, out.data, out_stride, rows + 2, cols};
        const cudaError_t error = run(command, nullptr);
        want.compare("gather_rows" + shape, error, out.host(), untouched);
    }
    {
        std::vector<int32_t> columns;
        for (int c = 0; c < cols; ++c) columns.push_back(cols - 1 - c);
        const DeviceArray<float> device_x(x), out(untouched);
        const DeviceArray<int32_t> device_columns(columns);
        Matrix want(rows, cols, out_stride);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) want.at(r, cols - 1 - c) = {double(x[size_t(r * stride + c)]), 0};
        const ScatterColumns command{device_x.data, stride, device_columns.data, out.data, out_stride, rows, cols};
        const cudaError_t error = run(command, nullptr);
        want.compare("scatter_columns" + shape, error, out.host(), untouched);
    }
}

void pool(Pooling pooling, bool normalize, int cols) {
    const std::vector<int32_t> first = {0, 1, 4, 4, 21, 0}, count = {1, 3, 0, 17, 40, 61};
    const int rows = 61, sequences = int(first.size());
    const int64_t stride = cols + 3, out_stride = cols + 1;
    std::vector<float> x = normal(size_t(rows * stride));
    for (int c = 0; c < cols; ++c) x[size_t(c)] *= 1e25f;  // the first sequence: its squares are too great for a float
    const DeviceArray<float> device_x(x), out(size_t(sequences * out_stride));
    const DeviceArray<int32_t> device_first(first), device_count(count);
    const Pool command{device_x.data, stride, device_first.data, device_count.data, out.data, out_stride,
                       sequences,     cols,   pooling,           normalize};
    const cudaError_t error = run(command, nullptr);
    Matrix want(sequences, cols, out_stride);
    for (int s = 0; s < sequences; ++s) {
        double norm = 0, missed = 0;
        const int n = count[size_t(s)];
        for (int c = 0; c < cols; ++c) {
            double value = 0, magnitude = 0;
            for (int r = 0; r < n; ++r) {
                const double v = x[size_t((first[size_t(s)] + r) * stride + c)];
                magnitude += std::abs(v);
                if (pooling == Pooling::mean) value += v;
                if (pooling == Pooling::max) value = r == 0 ? v : std::max(value, v);
                if (pooling == Pooling::cls ? r == 0 : pooling == Pooling::last && r == n - 1) value = v;
            }
            Expected& e = want.at(s, c);
            e.value = pooling == Pooling::mean && n > 0 ? value / n : value;
            // A chain of every 16th row, then 15 more.
            e.allowed = pooling == Pooling::mean && n > 1 ? (n / 16.0 + 17) * kUnit * magnitude / n : 0;
            norm += e.value * e.value, missed += e.allowed * e.allowed;
        }
        norm = std::max(std::sqrt(norm), 1e-12);
        for (int c = 0; normalize && c < cols; ++c) {
            Expected& e = want.at(s, c);
            e.value /= norm;
            e.allowed = (e.allowed + std::abs(e.value) * std::sqrt(missed)) / norm + 3 * kUnit * std::abs(e.value);
        }
    }
    want.compare(text("pool %d%s [%d]", int(pooling), normalize ? " normalized" : "", cols), error, out.host(),
                 std::vector<float>(size_t(sequences * out_stride), __uint_as_float(~0u)));
}

void not_a_number() {
    std::vector<float> x = normal(4 * 8);
    x[9] = NAN;
    const DeviceArray<float> device_x(x), out(8);
    const DeviceArray<int32_t> first(std::vector<int32_t>{0}), count(std::vector<int32_t>{4});
    const Pool command{device_x.data, 8, first.data, count.data, out.data, 8, 1, 8, Pooling::max, 0};
    const bool good = run(command, nullptr) == cudaSuccess && std::isnan(out.host()[1]) && !std::isnan(out.host()[0]);
    report("the maximum of NaN", good ? "" : "NaN was lost");
    TransformRows relu{};
    relu.kind = Transform::activation, relu.activation = Activation::relu;
    relu.x = device_x.data, relu.x_stride = 8, relu.rows = 4, relu.cols = 8, relu.out = device_x.data, relu.out_stride = 8;
    report("relu of NaN", run(relu, nullptr) == cudaSuccess && std::isnan(device_x.host()[9]) ? "" : "NaN was lost");
}

void cases() {
    transforms();
    for (const bool interleaved : {false, true}) {
        rope(11, 2, 64, 32, interleaved, 0, 1);
        rope(3, 5, 10, 3, interleaved, 7, 1.25f);  // partial, odd
        rope(17, 33, 16, 8, interleaved, 4, 1);    // more than one block of heads
        rope(1, 2, 1, 0, interleaved, 0, 1);
        rope(1, 2, 1200, 600, interleaved, 0, 1);
    }
    small_ops(1, 1, 0);
    small_ops(3, 516, 4);
    small_ops(5, 1031, 1);
    for (int p = 0; p <= int(Pooling::last); ++p)
        for (const bool normalize : {false, true}) pool(Pooling(p), normalize, 33), pool(Pooling(p), normalize, 300);
    not_a_number();
}

}  // namespace

int main(int argc, char** argv) { return run_all(argc, argv, cases); }
