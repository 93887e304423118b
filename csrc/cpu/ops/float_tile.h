// Products of float32 activations with float matrices: by rows (dot products) and by columns (tiles of 16 outputs).
#pragma once

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

/// out[r * out_stride + c] = dot(x row r, w row c) for kRows x kCols.
template <class Kind, int kRows, int kCols>
inline void dot_tile(const typename Kind::T* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t cols, float* out,
                     int64_t out_stride) {
    F acc[kRows][kCols];
    for (int r = 0; r < kRows; r++)
        for (int c = 0; c < kCols; c++) acc[r][c] = zero();
    int64_t k = 0;
    for (; k + kF <= cols; k += kF) {
        F xs[kRows];
        for (int r = 0; r < kRows; r++) xs[r] = load(x + r * x_stride + k);
        for (int c = 0; c < kCols; c++) {
            const F v = Kind::vector(w + c * w_stride + k);
            for (int r = 0; r < kRows; r++) acc[r][c] = fma(xs[r], v, acc[r][c]);
        }
    }
    if (k < cols) {
        F xs[kRows];
        for (int r = 0; r < kRows; r++) xs[r] = load_tail(x + r * x_stride + k, cols - k);
        for (int c = 0; c < kCols; c++) {
            const F v = vector_tail<Kind>(w + c * w_stride + k, cols - k);
            for (int r = 0; r < kRows; r++) acc[r][c] = fma(xs[r], v, acc[r][c]);
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int c = 0; c < kCols; c++) out[r * out_stride + c] = reduce_add(acc[r][c]);
}

/// out[r * out_stride + c] = dot(x row r, w row c), r < m, c < n; any sizes.
template <class Kind>
inline void dot_products(const typename Kind::T* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m,
                         int64_t cols, float* out, int64_t out_stride) {
    int64_t c = 0;
    for (; c + 4 <= n; c += 4, w += 4 * w_stride) {
        int64_t r = 0;
        for (; r + 2 <= m; r += 2)
            dot_tile<Kind, 2, 4>(w, w_stride, x + r * x_stride, x_stride, cols, out + r * out_stride + c, out_stride);
        if (r < m) dot_tile<Kind, 1, 4>(w, w_stride, x + r * x_stride, x_stride, cols, out + r * out_stride + c, out_stride);
    }
    for (; c < n; c++, w += w_stride)
        for (int64_t r = 0; r < m; r++)
            dot_tile<Kind, 1, 1>(w, w_stride, x + r * x_stride, x_stride, cols, out + r * out_stride + c, out_stride);
}

/// out [kRows][16] += x [kRows][cols] times w [cols][16]; rows of w are w_stride apart.
template <int kRows>
inline void outer_tile(const float* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t cols, float* out,
                       int64_t out_stride) {
    F16 acc[kRows];
    for (int r = 0; r < kRows; r++) acc[r] = zero16();
    for (int64_t k = 0; k < cols; k++, w += w_stride) {
        const F16 v = load16(w);
        for (int r = 0; r < kRows; r++) acc[r] = fma(v, set(x[r * x_stride + k]), acc[r]);
    }
    for (int r = 0; r < kRows; r++) store16(out + r * out_stride, add(acc[r], load16(out + r * out_stride)));
}

/// The same for any number of rows.
template <int kRows = kTileRows>
inline void outer_products(const float* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t m, int64_t cols,
                           float* out, int64_t out_stride) {
    for (; m >= kRows; m -= kRows, x += kRows * x_stride, out += kRows * out_stride)
        outer_tile<kRows>(w, w_stride, x, x_stride, cols, out, out_stride);
    if constexpr (kRows > 1)
        if (m > 0) outer_products<(kRows > 4 ? kRows / 2 : kRows - 1)>(w, w_stride, x, x_stride, m, cols, out, out_stride);
}

/// 16 rows of w, columns [k0, k0 + cols) -> out [cols][16] float32; rows past n are zeros.
template <class Kind>
inline void transpose_panel(const typename Kind::T* w, int64_t w_stride, int64_t n, int64_t cols, float* out) {
    alignas(64) float lanes[kPanelRows][kF];
    for (int64_t k = 0; k < cols; k += kF) {
        const int64_t count = min_of(kF, cols - k);
        for (int64_t r = 0; r < kPanelRows; r++)
            store(lanes[r], r >= n        ? zero()
                            : count == kF ? Kind::vector(w + r * w_stride + k)
                                          : vector_tail<Kind>(w + r * w_stride + k, count));
        for (int64_t i = 0; i < count; i++)
            for (int64_t r = 0; r < kPanelRows; r++) out[(k + i) * kPanelRows + r] = lanes[r][i];
    }
}

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
