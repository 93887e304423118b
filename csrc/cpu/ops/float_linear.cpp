// Weights in 32-bit and 16-bit floats, and decoded rows of every other storage. float32 sums: kF lanes each (dots), or pieces of
// kPieceCols columns that are added up (gemm), so that no sum is a chain of thousands of roundings.
#include "cpu/ops/float_tile.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kPieceCols = 256;  // a transposed piece is 16 KiB
constexpr int64_t kChunkRows = 96;

template <class Kind>
inline void dots(const void* weight, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m, int64_t cols,
                 const LinearOutput& out) {
    constexpr int64_t kCols = 4, kRows = 8;
    const auto* w = static_cast<const typename Kind::T*>(weight);
    float sums[kRows * kCols];
    for (int64_t c = 0; c < n; c += kCols)
        for (int64_t r0 = 0; r0 < m; r0 += kRows) {
            const int64_t count = min_of(kCols, n - c), rows = min_of(kRows, m - r0);
            dot_products<Kind>(w + c * w_stride, w_stride, count, x + r0 * x_stride, x_stride, rows, cols, sums, kCols);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < count; i++) {
                    float& y = out.y[(r0 + r) * out.stride + c + i];
                    y = sums[r * kCols + i] + (out.bias != nullptr ? out.bias[c + i] : 0) + (out.accumulate ? y : 0);
                }
        }
}

template <class Kind>
inline void gemm(const void* weight, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m, int64_t cols,
                 const LinearOutput& out) {
    alignas(64) float piece[kPieceCols * kPanelRows];
    alignas(64) float acc[kChunkRows * kPanelRows];
    const auto* w = static_cast<const typename Kind::T*>(weight);
    for (int64_t chunk = 0; chunk < m; chunk += kChunkRows) {
        const int64_t rows = min_of(kChunkRows, m - chunk);
        for (int64_t c = 0; c < n; c += kPanelRows) {
            const int64_t count = min_of(kPanelRows, n - c);
            for (int64_t i = 0; i < rows * kPanelRows; i++) acc[i] = 0;
            for (int64_t k = 0; k < cols; k += kPieceCols) {
                const int64_t width = min_of(kPieceCols, cols - k);
                transpose_panel<Kind>(w + c * w_stride + k, w_stride, count, width, piece);
                outer_products(piece, kPanelRows, x + chunk * x_stride + k, x_stride, rows, width, acc, kPanelRows);
            }
            for (int64_t r = 0; r < rows; r++) {
                float* y = out.y + (chunk + r) * out.stride + c;
                for (int64_t i = 0; i < count; i++)
                    y[i] =
                        acc[r * kPanelRows + i] + (out.bias != nullptr ? out.bias[c + i] : 0) + (out.accumulate ? y[i] : 0);
            }
        }
    }
}

}  // namespace

#define HALFBYTE_FLOAT_LINEAR(name, work, Kind)                                                                      \
    void name(const void* w, int64_t w_stride, int64_t n, const float* x, int64_t x_stride, int64_t m, int64_t cols, \
              const LinearOutput& out) {                                                                             \
        work<Kind>(w, w_stride, n, x, x_stride, m, cols, out);                                                       \
    }
HALFBYTE_FLOAT_LINEAR(float_dots_f32, dots, AsF32)
HALFBYTE_FLOAT_LINEAR(float_dots_f16, dots, AsF16)
HALFBYTE_FLOAT_LINEAR(float_dots_bf16, dots, AsBf16)
HALFBYTE_FLOAT_LINEAR(float_gemm_f32, gemm, AsF32)
HALFBYTE_FLOAT_LINEAR(float_gemm_f16, gemm, AsF16)
HALFBYTE_FLOAT_LINEAR(float_gemm_bf16, gemm, AsBf16)
#undef HALFBYTE_FLOAT_LINEAR

}  // namespace halfbyte::cpu::HALFBYTE_ISA
