// Activations as integers with a scale per block: 14 to 16 bits (1e-4 of relative error or less where they are spread like a normal
// distribution; a bf16 has 1.6e-3, and a second term follows for rows whose outliers would cost more: cpu/quantizer.cpp decides), or
// 8 bits (5e-3) for precision "fast".
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr float kTiny = 0x1p-60f;  // below it the inverse of a scale would overflow: everything is moved up first

/// What makes the largest magnitude of a block `limit`; blocks that hold a NaN or an infinity have scale NaN and integers of 0.
struct BlockScale {
    float up, inverse, scale;  ///< integer = x * up * inverse; x = integer * scale
};
inline BlockScale block_scale(float peak, bool finite, int limit) {
    if (!finite) return {0, 0, NAN};
    if (peak == 0) return {0, 0, 0};
    const float up = peak < kTiny ? 0x1p60f : 1.0f;
    return {up, float(limit) / (peak * up), peak / float(limit)};
}

/// The largest magnitude of each block and of all, or false where one holds a NaN or an infinity.
inline bool block_peaks(const float* x, int64_t block, int64_t blocks, float* peaks, float* highest) {
    F poison = zero();  // NaN once there is a NaN or an infinity
    *highest = 0;
    for (int64_t b = 0; b < blocks; b++, x += block) {
        F peak = zero(), own_poison = zero();  // of a block, lest the sums of all blocks wait for each other
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i);
            peak = vmax(peak, vabs(v));
            own_poison = fma(v, zero(), own_poison);
        }
        poison = poison + own_poison;
        peaks[b] = reduce_max(peak);
        *highest = max_of(*highest, peaks[b]);
    }
    const float bad = reduce_add(poison);
    return bad == bad;
}

inline bool all_finite(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] - x[i] == 0)) return false;
    return true;
}

constexpr int64_t kRunCols = 4096;  // whose peaks are found before their integers
constexpr int64_t kMostBlocks = kRunCols / 32;

/// One block of x in units of its scale: make(column, exact, rounded to integers).
template <class Make>
inline void round_block(const float* x, int64_t block, BlockScale s, Make make) {
    if (s.inverse == 0) {  // of a NaN, too
        for (int64_t i = 0; i < block; i += kF) make(i, zero(), zero());
    } else if (s.up == 1) {
        const F inverse = set(s.inverse);
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i) * inverse;
            make(i, v, round_even(v));
        }
    } else {
        for (int64_t i = 0; i < block; i += kF) {
            const F v = load(x + i) * set(s.up) * set(s.inverse);
            make(i, v, round_even(v));
        }
    }
}

}  // namespace

void quantize_row(const float* x, int64_t cols, int64_t block, int limit, int16_t* values, float* scales, float* sums,
                  int64_t stride, double* error2, double* norm2) {
    double errors = 0, squares = 0;
    const int64_t run = kRunCols / block;
    float peaks[kMostBlocks];
    for (int64_t first = 0; first < cols / block; first += run) {
        const int64_t count = min_of(run, cols / block - first);
        float highest;
        const bool finite = block_peaks(x, block, count, peaks, &highest);
        // In units of the highest peak of the run: the square of an activation may overflow.
        F error = zero(), square = zero();
        const double inverse = finite && highest > 0 ? 1 / double(highest) : 0.0;  // that of a subnormal is no float
        for (int64_t b = 0; b < count; b++, x += block, values += block) {
            const BlockScale s = block_scale(peaks[b], finite || all_finite(x, block), limit);
            // The sums of a block are in units of its own scale.
            F sum = zero(), own_error = zero(), own_square = zero();
            round_block(x, block, s, [&](int64_t i, F v, F r) {
                store_i16(values + i, r);
                sum = sum + r;
                const F e = v - r;
                own_error = fma(e, e, own_error);
                own_square = fma(r, r, own_square);
            });
            const float relative = inverse == 0 ? 0.0f : float(double(s.scale) * inverse);
            error = fma(own_error, set(relative * relative), error);
            square = fma(own_square, set(relative * relative), square);
            scales[(first + b) * stride] = s.scale;
            if (sums != nullptr) sums[(first + b) * stride] = s.scale * reduce_add(sum);
        }
        const double unit = double(highest) * double(highest);
        errors += unit * double(reduce_add(error));
        squares += unit * double(reduce_add(square));
    }
    *error2 = errors, *norm2 = squares;
}

void quantize_row8(const float* x, int64_t cols, int64_t block, uint8_t* values, float* scales, float* sums, int32_t* starts,
                   int64_t stride) {
#if HALFBYTE_QUADS
    const int64_t run = kRunCols / block;
    float peaks[kMostBlocks];
    for (int64_t first = 0; first < cols / block; first += run) {
        const int64_t count = min_of(run, cols / block - first);
        float highest;
        const bool finite = block_peaks(x, block, count, peaks, &highest);
        // Read again in wider pieces than they are written: a whole run later, so that no load waits for its stores.
        alignas(64) int16_t words[kRunCols];
        for (int64_t b = 0; b < count; b++, x += block) {
            const BlockScale s = block_scale(peaks[b], finite || all_finite(x, block), kActivationMax8);
            F sum = zero();
            round_block(x, block, s, [&](int64_t i, F, F r) {
                store_i16(words + b * block + i, r);
                sum = sum + r;
            });
            const float total = reduce_add(sum);
            const int64_t at = (first + b) * stride;
            scales[at] = s.scale;
            if (sums != nullptr) sums[at] = s.scale * total;
            starts[at] = -kQuadBias * int32_t(total);
        }
        store_quads_of(words, count * block, values);
        values += count * block;
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
