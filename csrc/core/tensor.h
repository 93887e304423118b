// A view of activations: a matrix of float32 in the memory of one device.
#pragma once

#include <cstdint>

namespace halfbyte {

/// [rows, cols] float32, row-major, rows `stride` elements apart. A view: it owns nothing.
/// Rows are tokens of a packed batch; heads are column ranges. `data` is a device pointer.
struct Tensor {
    float* data = nullptr;
    int64_t rows = 0;
    int64_t cols = 0;
    int64_t stride = 0;

    Tensor() = default;
    Tensor(float* data_, int64_t rows_, int64_t cols_) : Tensor(data_, rows_, cols_, cols_) {}
    Tensor(float* data_, int64_t rows_, int64_t cols_, int64_t stride_)
        : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

    explicit operator bool() const { return data != nullptr; }
    Tensor columns(int64_t first, int64_t count) const { return {data + first, rows, count, stride}; }
    Tensor row_range(int64_t first, int64_t count) const { return {data + first * stride, count, cols, stride}; }
    float* row(int64_t r) const { return data + r * stride; }
};

}  // namespace halfbyte
