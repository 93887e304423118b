// Sums, maxima, rotary embedding.
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {

void add_to(float* x, const float* y, int64_t n) {
    int64_t i = 0;
    for (; i + kF <= n; i += kF) store(x + i, load(x + i) + load(y + i));
    for (; i < n; i++) x[i] += y[i];
}

void add_scaled(float* x, const float* y, float scale, int64_t n) {
    int64_t i = 0;
    for (; i + kF <= n; i += kF) store(x + i, fma(load(y + i), set(scale), load(x + i)));
    for (; i < n; i++) x[i] += y[i] * scale;
}

void maximum(float* x, const float* y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (y[i] > x[i] || y[i] != y[i]) x[i] = y[i];
}

void scale_by(float* x, float factor, int64_t n) {
    int64_t i = 0;
    for (; i + kF <= n; i += kF) store(x + i, load(x + i) * set(factor));
    for (; i < n; i++) x[i] *= factor;
}

void rope_half(float* x, const float* cosines, const float* sines, int64_t half) {
    int64_t i = 0;
    for (; i + kF <= half; i += kF) {
        const F a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
        store(x + i, a * c - b * s);
        store(x + half + i, b * c + a * s);
    }
    for (; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
    }
}

void rope_interleaved(float* x, const float* cosines, const float* sines, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = b * cosines[i] + a * sines[i];
    }
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
