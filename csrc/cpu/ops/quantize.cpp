// Activations as integers with a scale per block: 14 bits (1e-4 of relative error where they are spread like a normal
// distribution; a bf16 has 1.6e-3, and a second term follows for rows whose outliers would cost more: cpu/linear.cpp decides), or
// 8 bits (5e-3) for precision "fast".
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// The largest magnitude of a block and what makes it `limit`; blocks that hold a NaN or an infinity have scale NaN.
struct BlockScale {
    float up, inverse, scale;  ///< integer = x * up * inverse; x = integer * scale
    bool empty;                ///< all zero, or not finite: the integers are zeros
};
inline BlockScale block_scale(const float* x, int64_t block, int limit) {
    F peaks = zero(), poison = zero();
    for (int64_t i = 0; i < block; i += kF) {
        const F v = load(x + i);
        peaks = vmax(peaks, vabs(v));
        poison = fma(v, zero(), poison);  // NaN once there is a NaN or an infinity
    }
    const float peak = reduce_max(peaks), bad = reduce_add(poison);
    if (bad != bad || peak == 0) return {1, 0, bad, true};
    // Where limit / peak would overflow, everything is moved up by 2^60 first.
    const float up = peak < 0x1p-60f ? 0x1p60f : 1.0f;
    return {up, float(limit) / (peak * up), peak / float(limit), false};
}

}  // namespace

void quantize_row(const float* x, int64_t cols, int64_t block, int16_t* values, float* scales, float* sums, int64_t stride,
                  double* error2, double* norm2) {
    double errors = 0, squares = 0;
    for (int64_t b = 0; b < cols / block; b++, x += block, values += block) {
        const BlockScale s = block_scale(x, block, kActivationMax);
        if (s.empty) {
            for (int64_t i = 0; i < block; i++) values[i] = 0;
            scales[b * stride] = sums[b * stride] = s.scale;
            continue;
        }
        F sum = zero(), error = zero(), square = zero();
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i) * set(s.up) * set(s.inverse);
            const F r = round_even(v);
            store_i16(values + i, r);
            sum = sum + r;
            // In units of the peak: the square of an activation may overflow.
            const F e = (v - r) * set(1.0f / float(kActivationMax));
            error = fma(e, e, error);
            square = fma(r, r, square);
        }
        scales[b * stride] = s.scale;
        sums[b * stride] = s.scale * reduce_add(sum);
        const double peak = double(s.scale) * kActivationMax, unit = peak * peak;
        errors += unit * double(reduce_add(error));
        squares += unit * double(reduce_add(square)) / (double(kActivationMax) * double(kActivationMax));
    }
    *error2 = errors, *norm2 = squares;
}

void quantize_row8(const float* x, int64_t cols, int64_t block, uint8_t* values, float* scales, float* sums, int32_t* starts,
                   int64_t stride) {
#if HALFBYTE_QUADS
    for (int64_t b = 0; b < cols / block; b++, x += block, values += block) {
        const BlockScale s = block_scale(x, block, kActivationMax8);
        F sum = zero();
        int16_t integers[64];
        for (int64_t i = 0; i < block; i += kF) {
            const F r = s.empty ? zero() : round_even(load(x + i) * set(s.up) * set(s.inverse));
            store_i16(integers + i, r);
            sum = sum + r;
        }
        for (int64_t g = 0; g < block; g += kGroupCols)
            for (int i = 0; i < kGroupCols; i++) values[g + i] = uint8_t(integers[g + kQuadOrder[i]]);
        const float total = reduce_add(sum);
        scales[b * stride] = s.scale;
        sums[b * stride] = s.scale * total;
        starts[b * stride] = -kByteBias * int32_t(total);
    }
#else
    (void)x, (void)cols, (void)block, (void)values, (void)scales, (void)sums, (void)starts, (void)stride;
#endif
}

void quantize_residual(const float* x, int64_t cols, int64_t block, const int16_t* values, const float* scales,
                       int64_t stride, float* out) {
    for (int64_t b = 0; b < cols / block; b++) {
        const F scale = set(-scales[b * stride]);
        for (int64_t i = b * block; i < (b + 1) * block; i += kF)
            store(out + i, fma(load_i16(values + i), scale, load(x + i)));
    }
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
