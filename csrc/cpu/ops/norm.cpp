// LayerNorm and RMSNorm. Sums are float32 over kPiece elements in kF lanes, then float64.
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kPiece = 256;

template <class Term>
inline double sum(const float* x, int64_t n, Term term) {
    double total = 0;
    for (int64_t i = 0; i < n;) {
        F lanes = zero(), others = zero();  // two chains: one would wait for itself
        const int64_t end = min_of(n, i + kPiece);
        for (; i + 2 * kF <= end; i += 2 * kF) lanes = lanes + term(load(x + i)), others = others + term(load(x + i + kF));
        for (; i + kF <= end; i += kF) lanes = lanes + term(load(x + i));
        lanes = lanes + others;
        total += double(reduce_add(lanes));
        for (; i < end; i++) {
            float one[kF];
            store(one, term(set(x[i])));
            total += double(one[0]);
        }
    }
    return total;
}

/// out = (x - mean) * factor * gamma + beta; beta may be null.
inline void normalize(const float* x, int64_t n, float mean, float factor, const float* gamma, const float* beta,
                      float* out) {
    const F shift = set(mean), scale = set(factor);
    int64_t i = 0;
    for (; i + kF <= n; i += kF) {
        const F v = (load(x + i) - shift) * scale;
        store(out + i, beta == nullptr ? v * load(gamma + i) : fma(v, load(gamma + i), load(beta + i)));
    }
    for (; i < n; i++) out[i] = (x[i] - mean) * factor * gamma[i] + (beta == nullptr ? 0 : beta[i]);
}

}  // namespace

void layer_norm(const float* x, int64_t cols, const float* gamma, const float* beta, float eps, float* out) {
    const float mean = float(sum(x, cols, [](F v) { return v; }) / double(cols));
    const F shift = set(mean);
    const double variance = sum(x, cols, [shift](F v) { return (v - shift) * (v - shift); }) / double(cols);
    normalize(x, cols, mean, float(1.0 / __builtin_sqrt(variance + double(eps))), gamma, beta, out);
}

void rms_norm(const float* x, int64_t cols, const float* gamma, float eps, float* out) {
    const double mean = sum_of_squares(x, cols) / double(cols);
    normalize(x, cols, 0, float(1.0 / __builtin_sqrt(mean + double(eps))), gamma, nullptr, out);
}

double sum_of_squares(const float* x, int64_t n) {
    return sum(x, n, [](F v) { return v * v; });
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
