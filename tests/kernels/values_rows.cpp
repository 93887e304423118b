// Norms, activations, sums, rotary embedding, lookup and pooling.
#include <algorithm>
#include <cmath>

#include "values.h"

using namespace halfbyte;

namespace values {

namespace {

constexpr int kActivations = 6;

double activated(int activation, double x) {
    switch (Activation(activation)) {
        case Activation::relu: return x > 0 || std::isnan(x) ? x : 0;
        case Activation::gelu: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
        case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::silu: return x / (1 + std::exp(-x));
        case Activation::tanh: return std::tanh(x);
        default: return x;
    }
}
/// Where 1 + erf and its like cancel: 4 units in the last place of the argument.
double activation_bound(double x, double exact) { return 0x1p-22 * std::max(std::fabs(x), std::fabs(exact)) + 1e-44; }

/// Roundings of a sum of n terms: float32 over pieces of 256, float64 beyond.
double sum_roundings(int64_t n) { return double(std::min<int64_t>(n, 256) + 4) * kRounding; }

void norms(const std::vector<Subject>& subjects, const std::vector<float>& x, int64_t m, int64_t k) {
    constexpr float kEps = 1e-5f;
    const std::vector<float> gamma = random_floats(k), beta = random_floats(k);
    Expected layer(m, k), rms(m, k);
    const double roundings = sum_roundings(k);
    for (int64_t r = 0; r < m; r++) {
        double mean = 0, sizes = 0, squares = 0, spread = 0, deviations = 0;
        for (int64_t i = 0; i < k; i++) {
            const double v = double(x[layer.at(r, i)]);
            mean += v / double(k), sizes += std::fabs(v) / double(k), squares += v * v / double(k);
        }
        for (int64_t i = 0; i < k; i++) {
            const double d = double(x[layer.at(r, i)]) - mean;
            spread += d * d / double(k), deviations += std::fabs(d) / double(k);
        }
        const double shift = roundings * sizes;  // error of the mean; a deviation has it and its own rounding
        const double factor = 1 / std::sqrt(spread + double(kEps));
        const double variance = 2 * deviations * shift + shift * shift + 2 * roundings * spread;
        const double relative = 0.5 * variance / (spread + double(kEps)) + 2 * kRounding;
        const double scale = 1 / std::sqrt(squares + double(kEps)), scale_error = roundings + 4 * kRounding;
        for (int64_t i = 0; i < k; i++) {
            const double g = double(gamma[size_t(i)]), b = double(beta[size_t(i)]), v = double(x[layer.at(r, i)]),
                         d = v - mean;
            layer.value[layer.at(r, i)] = d * factor * g + b;
            layer.bound[layer.at(r, i)] =
                1.01 *
                (std::fabs(g) * factor * (shift + std::fabs(d) * (relative + 4 * kRounding)) + 2 * kRounding * std::fabs(b));
            rms.value[rms.at(r, i)] = v * scale * g;
            rms.bound[rms.at(r, i)] = 1.01 * std::fabs(v * scale * g) * scale_error;
        }
    }
    for (const Subject& s : subjects) {
        std::vector<float> in = x, out(in.size());
        s.device->layer_norm(Tensor(in.data(), m, k), gamma.data(), beta.data(), kEps, Tensor(out.data(), m, k));
        compare(s, "layer_norm", out, layer);
        s.device->rms_norm(Tensor(in.data(), m, k), gamma.data(), kEps, Tensor(out.data(), m, k));
        compare(s, "rms_norm", out, rms);
    }
}

void activations(const std::vector<Subject>& subjects, std::vector<float> x, const std::vector<float>& up, int64_t m,
                 int64_t k) {
    for (float& value : x) value *= 4;  // into the tails as well
    for (int activation = 0; activation < kActivations; activation++) {
        const std::string name = "activation " + std::to_string(activation);
        Expected plain(m, k), gated(m, k);
        for (size_t i = 0; i < x.size(); i++) {
            const double exact = activated(activation, double(x[i])), factor = double(up[i]);
            plain.value[i] = exact, plain.bound[i] = activation_bound(double(x[i]), exact);
            gated.value[i] = exact * factor;
            gated.bound[i] = plain.bound[i] * std::fabs(factor) + 2 * kRounding * std::fabs(exact * factor) + 1e-44;
        }
        for (const Subject& s : subjects) {
            std::vector<float> found = x, factors = up;
            s.device->activate(Activation(activation), Tensor(found.data(), m, k));
            compare(s, name, found, plain);
            found = x;
            s.device->gated_activation(Activation(activation), Tensor(found.data(), m, k), Tensor(factors.data(), m, k));
            compare(s, name + " as a gate", found, gated);
        }
    }
}

void moves(const std::vector<Subject>& subjects, const std::vector<float>& x, const std::vector<float>& y, int64_t m,
           int64_t k) {
    Expected sum(m, k), gathered(m, k);
    std::vector<int32_t> rows(static_cast<size_t>(m));
    for (int32_t& row : rows) row = int32_t(random_below(m));
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < k; i++) {
            sum.value[sum.at(r, i)] = double(x[sum.at(r, i)] + y[sum.at(r, i)]);
            gathered.value[sum.at(r, i)] = double(x[size_t(rows[size_t(r)] * k + i)]);
        }
    for (const Subject& s : subjects) {
        std::vector<float> found = x, other = y;
        s.device->add(Tensor(found.data(), m, k), Tensor(other.data(), m, k));
        compare(s, "add", found, sum);
        other = x;
        s.device->gather_rows(Tensor(other.data(), m, k), rows, Tensor(found.data(), m, k));
        compare(s, "gather_rows", found, gathered);
    }
}

void pooling(const std::vector<Subject>& subjects, const std::vector<float>& x, int64_t m, int64_t k) {
    const std::vector<Sequence> sequences{{0, m / 2, 0, m / 2}, {m / 2, m - m / 2, 0, m - m / 2}};
    for (const Pooling kind : {Pooling::mean, Pooling::cls, Pooling::max, Pooling::last})
        for (const bool normalize : {false, true}) {
            Expected out(2, k);
            for (int64_t i = 0; i < 2; i++) {
                const Sequence& q = sequences[size_t(i)];
                double squares = 0, bounds = 0;
                for (int64_t c = 0; c < k; c++) {
                    double sum = 0, sizes = 0, peak = -HUGE_VAL, first = 0, last = 0;
                    for (int64_t r = 0; r < q.rows; r++) {
                        last = double(x[size_t((q.first_row + r) * k + c)]);
                        if (r == 0) first = last;
                        sum += last / double(q.rows), sizes += std::fabs(last) / double(q.rows), peak = std::max(peak, last);
                    }
                    const double value = q.rows == 0             ? 0
                                         : kind == Pooling::mean ? sum
                                         : kind == Pooling::max  ? peak
                                         : kind == Pooling::cls  ? first
                                                                 : last;
                    out.value[out.at(i, c)] = value;
                    out.bound[out.at(i, c)] = kind == Pooling::mean ? double(q.rows + 2) * kRounding * sizes : 0;
                    squares += value * value, bounds += out.bound[out.at(i, c)] * out.bound[out.at(i, c)];
                }
                if (!normalize || q.rows == 0) continue;
                const double norm = std::max(std::sqrt(squares), 1e-12);
                const double relative = std::sqrt(bounds) / norm + sum_roundings(k) + 3 * kRounding;
                for (int64_t c = 0; c < k; c++) {
                    double& value = out.value[out.at(i, c)];
                    double& bound = out.bound[out.at(i, c)];
                    value /= norm, bound = 1.01 * (bound / norm + std::fabs(value) * relative);
                }
            }
            for (const Subject& s : subjects) {
                std::vector<float> in = x, found(size_t(2 * k));
                s.device->pool(Tensor(in.data(), m, k), sequences, kind, normalize, Tensor(found.data(), 2, k));
                compare(s, "pool " + std::to_string(int(kind)), found, out);
            }
        }
}

}  // namespace

void rowwise(const std::vector<Subject>& subjects, int64_t m, int64_t k) {
    const std::vector<float> x = random_floats(m * k), y = random_floats(m * k);
    norms(subjects, x, m, k);
    activations(subjects, x, y, m, k);
    moves(subjects, x, y, m, k);
    pooling(subjects, x, m, k);
}

void rope(const std::vector<Subject>& subjects, int64_t m, int64_t dim) {
    constexpr int64_t kHeads = 3;
    constexpr float kMagnitude = 1.25f;
    const std::vector<float> x = random_floats(m * kHeads * dim);
    std::vector<int32_t> positions(static_cast<size_t>(m));
    for (int32_t& position : positions) position = int32_t(random_below(5000));
    for (const int64_t half : {dim / 2, dim / 4}) {  // all dimensions of a head, or some of them
        std::vector<float> frequencies(static_cast<size_t>(half));
        for (int64_t i = 0; i < half; i++) frequencies[size_t(i)] = float(std::pow(10000.0, -double(i) / double(half)));
        for (const RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
            Expected out(m, kHeads * dim);
            for (size_t i = 0; i < x.size(); i++) out.value[i] = double(x[i]);
            for (int64_t r = 0; r < m; r++)
                for (int64_t head = 0; head < kHeads; head++)
                    for (int64_t i = 0; i < half; i++) {
                        // The angle is a float32 product, as in transformers.
                        const double angle = double(float(positions[size_t(r)]) * frequencies[size_t(i)]);
                        const double c = std::cos(angle) * double(kMagnitude), s = std::sin(angle) * double(kMagnitude);
                        const size_t first = out.at(r, head * dim + (style == RopeStyle::half ? i : 2 * i));
                        const size_t second = style == RopeStyle::half ? first + size_t(half) : first + 1;
                        const double a = double(x[first]), b = double(x[second]);
                        out.value[first] = a * c - b * s, out.value[second] = b * c + a * s;
                        // cos or sin, product, sum: three roundings of each term.
                        out.bound[first] = 3.01 * kRounding * (std::fabs(a * c) + std::fabs(b * s));
                        out.bound[second] = 3.01 * kRounding * (std::fabs(b * c) + std::fabs(a * s));
                    }
            for (const Subject& s : subjects) {
                std::vector<float> found = x;
                s.device->rope(Tensor(found.data(), m, kHeads * dim), dim, positions, frequencies, kMagnitude, style);
                compare(s, style == RopeStyle::half ? "rope half" : "rope interleaved", found, out);
            }
        }
    }
}

void special_values(const std::vector<Subject>& subjects) {
    // Twice, so that whole vectors and the tail see each of them.
    const std::vector<float> some = {NAN,     HUGE_VALF, 0.0f,    -0.0f,  3e38f, -3e38f, 1e-45f,   -1e-45f,  88.7f, -88.0f,
                                     -103.9f, 200.0f,    -200.0f, 0.625f, 1.0f,  4.0f,   65519.0f, 65520.0f, 6e-8f};
    std::vector<float> x = some;
    x.insert(x.end(), some.begin(), some.end());
    const int64_t n = int64_t(x.size());
    for (int activation = 0; activation < kActivations; activation++) {
        Expected out(1, n);
        for (size_t i = 0; i < x.size(); i++) {
            out.value[i] = activated(activation, double(x[i]));
            out.bound[i] = activation_bound(double(x[i]), out.value[i]);
        }
        for (const Subject& s : subjects) {
            std::vector<float> found = x;
            s.device->activate(Activation(activation), Tensor(found.data(), 1, n));
            compare(s, "activation " + std::to_string(activation) + " of special values", found, out);
        }
    }
    // Into a cache of half floats: the very bits, but for those of a NaN. Where they lie there is the device's own affair.
    std::vector<float> wide = x;
    for (const float value : random_floats(1000))
        wide.push_back(value), wide.push_back(value * 1e-5f), wide.push_back(value * 1e4f);
    const auto width = int64_t(wide.size());
    const auto without_zeros = [](std::vector<uint16_t> halves) {
        for (uint16_t& half : halves)
            if (std::isnan(f16_to_f32(half))) half = 0x7e00;
        std::erase(halves, uint16_t(0));  // what pads a row
        std::sort(halves.begin(), halves.end());
        return halves;
    };
    std::vector<uint16_t> expected;
    for (const float value : wide) expected.push_back(f32_to_f16(value));
    const Sequence stored{0, 1, 0, 1};
    for (const Subject& s : subjects)
        for (const KvRole role : {KvRole::keys, KvRole::values}) {
            std::vector<uint16_t> found(size_t(kKvBlock * kv_width(width)));
            KvView view;
            view.data = found.data(), view.dtype = DType::f16, view.role = role;
            view.heads = 1, view.head_dim = width, view.rows = kKvBlock;
            s.device->store_kv(Tensor(wide.data(), 1, width), {&stored, 1}, view);
            if (without_zeros(found) != without_zeros(expected))
                fail(s, "store_kv", "other half floats than rounding gives");
        }
}

}  // namespace values
