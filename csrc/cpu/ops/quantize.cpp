// Activations as 14-bit integers with a scale per block: 1e-4 of relative error where they are spread like a normal
// distribution (a bf16 has 1.6e-3), and a second term for rows whose outliers would cost more (cpu_device.cpp decides).
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {

void quantize_row(const float* x, int64_t cols, int64_t block, int16_t* values, float* scales, float* sums, double* error2,
                  double* norm2) {
    double errors = 0, squares = 0;
    for (int64_t b = 0; b < cols / block; b++, x += block, values += block) {
        F peaks = zero(), poison = zero();
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i);
            peaks = vmax(peaks, vabs(v));
            poison = fma(v, zero(), poison);  // NaN once there is a NaN or an infinity
        }
        const float peak = reduce_max(peaks), bad = reduce_add(poison);
        if (bad != bad || peak == 0) {
            for (int64_t i = 0; i < block; i++) values[i] = 0;
            scales[b] = sums[b] = bad;
            continue;
        }
        // Where 8191 / peak would overflow, everything is moved up by 2^60 first.
        const float up = peak < 0x1p-60f ? 0x1p60f : 1.0f;
        const float inverse = float(kActivationMax) / (peak * up), scale = peak / float(kActivationMax);
        F sum = zero(), error = zero(), square = zero();
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i);
            const F r = round_even(v * set(up) * set(inverse));
            store_i16(values + i, r);
            sum = sum + r;
            // In units of the peak: the square of an activation may overflow.
            const F e =
                fma(set(-1.0f / float(kActivationMax)), r, v * set(up) * set(inverse) * set(1.0f / float(kActivationMax)));
            error = fma(e, e, error);
            square = fma(r, r, square);
        }
        scales[b] = scale * kScaleShift;
        sums[b] = scales[b] * reduce_add(sum);
        const double unit = double(peak) * double(peak);
        errors += unit * double(reduce_add(error));
        squares += unit * double(reduce_add(square)) / (double(kActivationMax) * double(kActivationMax));
    }
    *error2 = errors, *norm2 = squares;
}

void quantize_residual(const float* x, int64_t cols, int64_t block, const int16_t* values, const float* scales, float* out) {
    for (int64_t b = 0; b < cols / block; b++) {
        const F scale = set(-scales[b] / kScaleShift);
        for (int64_t i = b * block; i < (b + 1) * block; i += kF)
            store(out + i, fma(load_i16(values + i), scale, load(x + i)));
    }
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
