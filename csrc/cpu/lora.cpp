// CpuDevice::lora: y += scale * (x A^T) B^T, the rows of each adapter together.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/cpu_device.h"
#include "cpu/memory.h"

namespace halfbyte::cpu {

namespace {

constexpr int64_t kPieceRows = 48;

}  // namespace

void CpuDevice::lora_rows(const Tensor& x, const LoraFactors& adapter, std::span<const int32_t> rows, Tensor y) {
    const FloatKind a_kind = float_kind(adapter.a_dtype), b_kind = float_kind(adapter.b_dtype);
    const int64_t total = int64_t(rows.size()), rank = adapter.rank;
    const auto run = [&](int64_t first, int64_t last) {
        const int64_t m = last - first;
        const bool together = rows[size_t(last - 1)] - rows[size_t(first)] == m - 1;  // rows ascend
        // [m][rank] products with A, and for scattered rows copies of x and a place for their results.
        const size_t floats = size_t(m) * size_t(rank + (together ? 0 : x.cols + y.cols));
        auto* inner = static_cast<float*>(scratch(Scratch::lora, floats * sizeof(float)));
        Tensor in, result;
        if (together) {
            in = x.row_range(rows[size_t(first)], m), result = y.row_range(rows[size_t(first)], m);
        } else {
            in = Tensor(inner + m * rank, m, x.cols), result = Tensor(in.data + m * x.cols, m, y.cols);
            for (int64_t r = 0; r < m; r++) {
                std::memcpy(in.row(r), x.row(rows[size_t(first + r)]), size_t(x.cols) * sizeof(float));
                std::memcpy(result.row(r), y.row(rows[size_t(first + r)]), size_t(y.cols) * sizeof(float));
            }
        }
        const auto& work = float_work(m);
        work[a_kind](adapter.a, x.cols, rank, in.data, in.stride, m, x.cols, LinearOutput{inner, rank, nullptr, false});
        kernels_.scale(inner, adapter.scale, m * rank);
        work[b_kind](adapter.b, rank, y.cols, inner, rank, m, rank, LinearOutput{result.data, result.stride, nullptr, true});
        if (!together)
            for (int64_t r = 0; r < m; r++)
                std::memcpy(y.row(rows[size_t(first + r)]), result.row(r), size_t(y.cols) * sizeof(float));
    };
    if (total <= kFewFloatRows)
        run(0, total);
    else
        pool_.parallel_for(total, kPieceRows, run);
}

void CpuDevice::lora(const Tensor& x, std::span<const LoraFactors> adapters, const int32_t* row_adapter, Tensor y) {
    expect(x.rows == y.rows, "lora: ", x.rows, " rows of x and ", y.rows, " of y");
    std::vector<int32_t> rows;
    rows.reserve(size_t(x.rows));
    for (size_t index = 0; index < adapters.size(); index++) {
        if (adapters[index].rank == 0) continue;
        rows.clear();
        for (int64_t r = 0; r < x.rows; r++)
            if ((row_adapter == nullptr ? 0 : row_adapter[r]) == int64_t(index)) rows.push_back(int32_t(r));
        if (!rows.empty()) lora_rows(x, adapters[index], rows, y);
    }
}

}  // namespace halfbyte::cpu
