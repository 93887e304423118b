// Keys and values into the layout that attention reads, in blocks of kKeyBlock: keys transposed, so that one load brings the
// same dimension of 16 keys and no sum runs across a vector; values in parts of kValueColumns, so that a tile of sums, which
// may be narrower than a head, reads memory in order.
#include "cpu/ops/transpose.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kPiece = 64;  // elements that are converted at a time

inline uint16_t to_bf16(float value) {  // to nearest even; NaN stays NaN
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// How floats become elements of the store. `inverse` is 1 / scale.
struct ToF32 {
    using T = float;
    static constexpr bool kScaled = false;
    static void vector(F x, T* out) { store(out, x); }
};
struct ToF16 {
    using T = uint16_t;
    static constexpr bool kScaled = false;
    static void vector(F x, T* out) { store_f16(out, x); }
};
struct ToBf16 {
    using T = uint16_t;
    static constexpr bool kScaled = false;
    static void vector(F x, T* out) {
        float lanes[kF];
        store(lanes, x);
        for (int i = 0; i < kF; i++) out[i] = to_bf16(lanes[i]);
    }
};
struct ToI8 {
    using T = int8_t;
    static constexpr bool kScaled = true;
    static void vector(F x, T* out) {
        int16_t lanes[kF];
        store_i16(lanes, round_even(x));
        for (int i = 0; i < kF; i++) out[i] = T(lanes[i]);
    }
};

/// n floats, each times `inverse` where the store has scales.
template <class To>
inline void convert(const float* x, int64_t n, float inverse, typename To::T* out) {
    const auto scaled = [inverse](F v) {
        if constexpr (To::kScaled) return v * set(inverse);
        (void)inverse;
        return v;
    };
    int64_t i = 0;
    for (; i + kF <= n; i += kF) To::vector(scaled(load(x + i)), out + i);
    if (i < n) {
        typename To::T lanes[kF];
        To::vector(scaled(load_tail(x + i, n - i)), lanes);
        for (int64_t j = i; j < n; j++) out[j] = lanes[j - i];
    }
}

/// Largest magnitude / 127; NaN where x holds a NaN or an infinity, so that the row shows it. inverse: 1 / scale, or 0.
inline float scale_of(const float* x, int64_t n, float& inverse) {
    float most = 0, bad = 0;
    for (int64_t i = 0; i < n; i++) {
        most = max_of(fabsf(x[i]), most);
        bad += x[i] * 0.0f;
    }
    inverse = bad == 0 && most > 1e-30f ? 127.0f / most : 0.0f;
    return most / 127.0f + bad;
}

template <class To>
inline float prepare(const float* x, int64_t dim, int64_t key, float* scales) {
    float inverse = 1;
    if constexpr (To::kScaled) scales[key] = scale_of(x, dim, inverse);
    return inverse;
}

template <class To>
inline void keys_into(const float* x, int64_t x_stride, int64_t count, int64_t dim, int64_t first, void* to, float* scales) {
    auto* keys = static_cast<typename To::T*>(to);
    for (int64_t key = first; key < first + count;) {
        typename To::T* column = keys + key / kKeyBlock * kKeyBlock * dim + key % kKeyBlock;
        if (key % kF == 0 && key + kF <= first + count) {  // kF keys, transposed in registers
            float inverses[kF];
            for (int i = 0; i < kF; i++) inverses[i] = prepare<To>(x + i * x_stride, dim, key + i, scales);
            // Rows of activations are far apart, which no prefetcher follows: ask for the next ones.
            if (key + 2 * kF <= first + count)
                for (int64_t k = 0; k < dim; k += 16)
                    for (int i = 0; i < kF; i++) prefetch(x + (kF + i) * x_stride + k);
            for (int64_t k = 0; k < dim; k += kF) {
                const int64_t n = min_of(kF, dim - k);
                F v[kF];
                if (n == kF)
                    for (int i = 0; i < kF; i++) v[i] = load(x + i * x_stride + k);
                else
                    for (int i = 0; i < kF; i++) v[i] = load_tail(x + i * x_stride + k, n);
                transpose(v);
                for (int64_t i = 0; i < n; i++)
                    To::vector(To::kScaled ? v[i] * load(inverses) : v[i], column + (k + i) * kKeyBlock);
            }
            key += kF, x += kF * x_stride;
            continue;
        }
        const float inverse = prepare<To>(x, dim, key, scales);
        for (int64_t k = 0; k < dim; k += kPiece) {
            typename To::T piece[kPiece];
            const int64_t n = min_of(kPiece, dim - k);
            convert<To>(x + k, n, inverse, piece);
            for (int64_t i = 0; i < n; i++) column[(k + i) * kKeyBlock] = piece[i];
        }
        key++, x += x_stride;
    }
}

template <class To>
inline void values_into(const float* x, int64_t x_stride, int64_t count, int64_t dim, int64_t first, void* to,
                        float* scales) {
    const int64_t padded = whole_vectors(dim);
    auto* values = static_cast<typename To::T*>(to);
    for (int64_t key = first; key < first + count; key++, x += x_stride) {
        const float inverse = prepare<To>(x, dim, key, scales);
        const int64_t place = key % kKeyBlock;
        if (key + 16 < first + count)
            for (int64_t k = 0; k < dim; k += 16) prefetch(x + 16 * x_stride + k);
        for (int64_t part = 0; part < padded; part += kValueColumns) {
            const int64_t columns = min_of(kValueColumns, padded - part), n = min_of(columns, dim - part);
            typename To::T* row = values + (key - place) * padded + kKeyBlock * part + place * columns;
            convert<To>(x + part, n, inverse, row);
            for (int64_t k = n; k < columns; k++) row[k] = 0;
        }
    }
}

}  // namespace

#define HALFBYTE_STORE(name, To)                                                                                         \
    void store_keys_##name(const float* x, int64_t x_stride, int64_t count, int64_t head_dim, int64_t first, void* to,   \
                           float* scales) {                                                                              \
        keys_into<To>(x, x_stride, count, head_dim, first, to, scales);                                                  \
    }                                                                                                                    \
    void store_values_##name(const float* x, int64_t x_stride, int64_t count, int64_t head_dim, int64_t first, void* to, \
                             float* scales) {                                                                            \
        values_into<To>(x, x_stride, count, head_dim, first, to, scales);                                                \
    }
HALFBYTE_STORE(f32, ToF32)
HALFBYTE_STORE(f16, ToF16)
HALFBYTE_STORE(bf16, ToBf16)
HALFBYTE_STORE(i8, ToI8)
#undef HALFBYTE_STORE

}  // namespace halfbyte::cpu::HALFBYTE_ISA
