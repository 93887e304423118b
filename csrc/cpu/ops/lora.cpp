// The two thin products of a LoRA adapter, on panels of 16 (cpu/adapters.cpp): kRows rows at a time share what is read.
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int kVectors = kPanelRows / kF;         // a panel's 16 lanes
constexpr int kMostRows = kVectors == 1 ? 8 : 4;  // accumulators stay in registers
constexpr int64_t kPrefetchBytes = 2048;
constexpr int64_t kSumCols = 256;  // so that no sum is a chain of thousands of roundings

/// out[row i][16] = scale * sum over k of x[row i][k] * a[k][16], in kChains sums side by side: one chain of multiply-adds waits
/// for itself where there are few rows.
template <class Kind, int kRows, int kChains>
inline void inner_tile(const typename Kind::T* a, const float* const* x, int64_t cols, float scale, float* out,
                       int64_t out_stride) {
    F total[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) total[r][v] = zero();
    const float* rows[kRows];
    for (int r = 0; r < kRows; r++) rows[r] = x[r];
    for (int64_t k = 0; k < cols;) {
        const int64_t end = min_of(cols, k + kSumCols);
        F acc[kRows][kChains][kVectors];
        for (int r = 0; r < kRows; r++)
            for (int c = 0; c < kChains; c++)
                for (int v = 0; v < kVectors; v++) acc[r][c][v] = zero();
        for (; k + kChains <= end; k += kChains, a += kChains * kPanelRows) {
            constexpr int64_t kBytes = kChains * kPanelRows * int64_t(sizeof(typename Kind::T));
            if constexpr (kRows < 4)  // A comes from memory, in pages that the hardware does not look beyond
                for (int64_t line = 0; line < kBytes; line += 64)
                    prefetch(reinterpret_cast<const char*>(a) + kPrefetchBytes + line);
            for (int c = 0; c < kChains; c++)
                for (int v = 0; v < kVectors; v++) {
                    const F w = Kind::vector(a + c * kPanelRows + v * kF);
                    for (int r = 0; r < kRows; r++) acc[r][c][v] = fma(w, set(rows[r][k + c]), acc[r][c][v]);
                }
        }
        for (; k < end; k++, a += kPanelRows)
            for (int v = 0; v < kVectors; v++) {
                const F w = Kind::vector(a + v * kF);
                for (int r = 0; r < kRows; r++) acc[r][0][v] = fma(w, set(rows[r][k]), acc[r][0][v]);
            }
        for (int r = 0; r < kRows; r++)
            for (int c = 0; c < kChains; c++)
                for (int v = 0; v < kVectors; v++) total[r][v] = total[r][v] + acc[r][c][v];
    }
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) store(out + r * out_stride + v * kF, total[r][v] * set(scale));
}

/// y[row i][0 .. n) += sum over r of inner[row i][r] * b[r][16]
template <class Kind, int kRows>
inline void outer_tile(const typename Kind::T* b, const float* inner, int64_t inner_stride, int64_t rank, float* const* y,
                       int64_t n) {
    F acc[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) acc[r][v] = zero();
    for (int64_t k = 0; k < rank; k++, b += kPanelRows)
        for (int v = 0; v < kVectors; v++) {
            const F w = Kind::vector(b + v * kF);
            for (int r = 0; r < kRows; r++) acc[r][v] = fma(w, set(inner[r * inner_stride + k]), acc[r][v]);
        }
    for (int r = 0; r < kRows; r++) {
        if (n == kPanelRows) {
            for (int v = 0; v < kVectors; v++) store(y[r] + v * kF, load(y[r] + v * kF) + acc[r][v]);
            continue;
        }
        float lanes[kPanelRows];
        for (int v = 0; v < kVectors; v++) store(lanes + v * kF, acc[r][v]);
        for (int64_t i = 0; i < n; i++) y[r][i] += lanes[i];
    }
}

/// Row i of `count` at base: rows[i], or i itself.
inline int64_t row_at(const int32_t* rows, int64_t i) { return rows == nullptr ? i : rows[i]; }

/// kAlone: every call has the same rows, so the last ones may be summed in another way than if they came with more.
template <class Kind, bool kAlone, int kRows = kMostRows>
inline void inner(const void* a, const float* x, int64_t x_stride, const int32_t* rows, int64_t i, int64_t count,
                  int64_t cols, float scale, float* out, int64_t out_stride) {
    for (; i + kRows <= count; i += kRows) {
        const float* from[kRows];
        for (int r = 0; r < kRows; r++) from[r] = x + row_at(rows, i + r) * x_stride;
        inner_tile<Kind, kRows, !kAlone || kRows >= 4 ? 1 : 4 / kRows>(static_cast<const typename Kind::T*>(a), from, cols,
                                                                       scale, out + i * out_stride, out_stride);
    }
    if constexpr (kRows > 1)
        if (i < count) inner<Kind, kAlone, kRows / 2>(a, x, x_stride, rows, i, count, cols, scale, out, out_stride);
}

template <class Kind, int kRows = kMostRows>
inline void outer(const void* b, const float* inner, int64_t inner_stride, const int32_t* rows, int64_t i, int64_t count,
                  int64_t rank, float* y, int64_t y_stride, int64_t n) {
    for (; i + kRows <= count; i += kRows) {
        float* to[kRows];
        for (int r = 0; r < kRows; r++) to[r] = y + row_at(rows, i + r) * y_stride;
        const auto* panel = static_cast<const typename Kind::T*>(b);
        for (int64_t c = 0; c < n; c += kPanelRows, panel += rank * kPanelRows) {
            outer_tile<Kind, kRows>(panel, inner + i * inner_stride, inner_stride, rank, to, min_of(kPanelRows, n - c));
            for (int r = 0; r < kRows; r++) to[r] += kPanelRows;
        }
    }
    if constexpr (kRows > 1)
        if (i < count) outer<Kind, kRows / 2>(b, inner, inner_stride, rows, i, count, rank, y, y_stride, n);
}

}  // namespace

#define HALFBYTE_LORA(kind, Kind)                                                                                    \
    void lora_inner_##kind(const void* a, const float* x, int64_t x_stride, const int32_t* rows, int64_t count,      \
                           int64_t cols, bool alone, float scale, float* out, int64_t out_stride) {                  \
        if (alone) return inner<Kind, true>(a, x, x_stride, rows, 0, count, cols, scale, out, out_stride);           \
        inner<Kind, false>(a, x, x_stride, rows, 0, count, cols, scale, out, out_stride);                            \
    }                                                                                                                \
    void lora_outer_##kind(const void* b, const float* in, int64_t inner_stride, const int32_t* rows, int64_t count, \
                           int64_t rank, float* y, int64_t y_stride, int64_t n) {                                    \
        outer<Kind>(b, in, inner_stride, rows, 0, count, rank, y, y_stride, n);                                      \
    }
HALFBYTE_LORA(f32, AsF32)
HALFBYTE_LORA(f16, AsF16)
HALFBYTE_LORA(bf16, AsBf16)
#undef HALFBYTE_LORA

}  // namespace halfbyte::cpu::HALFBYTE_ISA
