// CpuDevice::linear: activations are quantised once, then one parallel region runs every part.
#include <algorithm>
#include <atomic>
#include <utility>

#include "cpu/cpu_device.h"
#include "cpu/memory.h"
#include "cpu/panels.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

namespace {

// A row whose integers are further than this from its activations (relative, root of the mean square) gets a second term. Rows
// spread like a normal distribution are at 1e-4, those of real models at 1e-4 to 2e-4, and rounding to bf16 is at 1.6e-3.
constexpr double kWorstRounding = 2.5e-4;
constexpr int64_t kSmallLinear = int64_t(1) << 16;  // multiplications below which a second thread costs more than it saves

size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// x as integers in blocks of `block`, in `memory` of quantized_bytes(): room for a second term of every row.
size_t quantized_bytes(const Tensor& x, int64_t block) {
    const size_t rows = size_t(2 * x.rows), blocks = size_t(x.cols / block);
    return round_up(rows * size_t(x.cols + 32) * sizeof(int16_t)) + 3 * round_up(rows * blocks * sizeof(float)) +
           round_up(rows * sizeof(int32_t));
}

QuantizedRows quantize(const Tensor& x, int64_t block, ActivationForm form, char* memory, const Kernels& kernels,
                       ThreadPool& pool) {
    const int64_t capacity = form == kInt8 ? x.rows : 2 * x.rows, blocks = x.cols / block;
    const auto take = [&](size_t bytes) {
        char* const taken = memory;
        memory += round_up(bytes);
        return taken;
    };
    QuantizedRows q;
    // 64 bytes more than a row: rows that are a multiple of 4 KiB apart would fight for the same lines of the cache.
    q.form = form, q.stride = x.cols * (form == kInt8 ? 1 : 2) + 64;
    q.scale_stride = capacity, q.main_count = x.rows;
    auto* values = reinterpret_cast<uint8_t*>(take(size_t(capacity * q.stride)));
    auto* scales = reinterpret_cast<float*>(take(size_t(capacity * blocks) * sizeof(float)));
    auto* sums = reinterpret_cast<float*>(take(size_t(capacity * blocks) * sizeof(float)));
    auto* starts = reinterpret_cast<int32_t*>(take(size_t(capacity * blocks) * sizeof(int32_t)));
    auto* rows = reinterpret_cast<int32_t*>(take(size_t(capacity) * sizeof(int32_t)));
    std::atomic<int64_t> count{x.rows};
    const auto words = [&](int64_t row) { return reinterpret_cast<int16_t*>(values + row * q.stride); };
    pool.parallel_for(x.rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, x.cols)), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            rows[r] = int32_t(r);
            if (form == kInt8) {
                kernels.quantize_row8(x.row(r), x.cols, block, values + r * q.stride, scales + r, sums + r, starts + r,
                                      capacity);
                continue;
            }
            double error = 0, norm = 0;
            kernels.quantize_row(x.row(r), x.cols, block, words(r), scales + r, sums + r, capacity, &error, &norm);
            if (error <= kWorstRounding * kWorstRounding * norm) continue;
            const int64_t extra = count.fetch_add(1, std::memory_order_relaxed);
            auto* residual = static_cast<float*>(scratch(Scratch::residual, size_t(x.cols) * sizeof(float)));
            kernels.quantize_residual(x.row(r), x.cols, block, words(r), scales + r, capacity, residual);
            kernels.quantize_row(residual, x.cols, block, words(extra), scales + extra, sums + extra, capacity, &error,
                                 &norm);
            rows[extra] = int32_t(r);
        }
    });
    q.values = values, q.scales = scales, q.sums = sums, q.starts = starts, q.rows = rows, q.count = count.load();
    return q;
}

/// Which integers the panels of a part are multiplied with: [form][block == 64].
ActivationForm activation_form(const Panels& panels, Precision precision, const Kernels& kernels) {
    const bool bytes =
        precision == Precision::fast && kernels.quad_order != nullptr && panels.level_form != LevelForm::words;
    return bytes ? kInt8 : kInt16;
}

}  // namespace

void CpuDevice::float_part(const Tensor& x, const LinearPart& part, int64_t first, int64_t last) const {
    const Weight& w = *part.weight;
    LinearOutput out{part.y.data, part.y.stride, part.bias, part.accumulate};
    const auto& work = float_work(x.rows);
    const auto shifted = [&](int64_t row) {
        return LinearOutput{out.y + row, out.stride, out.bias == nullptr ? nullptr : out.bias + row, out.accumulate};
    };
    const int64_t begin = first * kPanelRows, end = std::min(last * kPanelRows, w.rows);
    if (w.storage->kind() == StorageKind::floating) {
        const DType dtype = static_cast<const FloatStorage*>(w.storage)->dtype();
        const char* data = w.planes[0].as<char>() + size_t(begin * w.cols) * size_of(dtype);
        return work[float_kind(dtype)](data, w.cols, end - begin, x.data, x.stride, x.rows, w.cols, shifted(begin));
    }
    auto* rows = static_cast<float*>(scratch(Scratch::decoded, size_t(kPanelRows * w.cols) * sizeof(float)));
    for (int64_t row = begin; row < end; row += kPanelRows) {
        const int64_t count = std::min<int64_t>(kPanelRows, end - row);
        for (int64_t i = 0; i < count; i++) w.storage->decode_row(w, row + i, rows + i * w.cols);
        work[kF32](rows, w.cols, count, x.data, x.stride, x.rows, w.cols, shifted(row));
    }
}

void CpuDevice::linear(const Tensor& x, std::span<const LinearPart> parts) {
    int64_t units = 0, work = 0;  // units of 16 output columns
    // Activations that the parts want: [form][in blocks of 32, of 64]
    bool wanted[kActivationForms][2] = {};
    const auto slot = [&](const Weight& w) -> std::pair<ActivationForm, bool> {
        return {activation_form(view_panels(w), precision_, kernels_), w.block_size == 64};
    };
    for (const LinearPart& part : parts) {
        const Weight& w = *part.weight;
        expect(w.cols == x.cols && part.y.rows == x.rows && part.y.cols == w.rows, "linear: x [", x.rows, ", ", x.cols,
               "], weight [", w.rows, ", ", w.cols, "], y [", part.y.rows, ", ", part.y.cols, "]");
        expect(!is_panels(w) || is_panels(w, isa_),
               "linear: the weight was uploaded to a device with another instruction set");
        if (is_panels(w)) wanted[slot(w).first][slot(w).second] = true;
        units += (w.rows + kPanelRows - 1) / kPanelRows;
        work += w.rows * x.rows * x.cols;
    }
    if (x.rows == 0 || units == 0) return;
    QuantizedRows quantized[kActivationForms][2];
    size_t bytes = 0;
    for (const auto& form : wanted)
        for (const int at : {0, 1}) bytes += form[at] ? quantized_bytes(x, 32 << at) : 0;
    if (bytes > 0) {
        auto* memory = static_cast<char*>(scratch(Scratch::quantized, bytes));
        for (const int form : {kInt16, kInt8})
            for (const int at : {0, 1}) {
                if (!wanted[form][at]) continue;
                quantized[form][at] = quantize(x, 32 << at, ActivationForm(form), memory, kernels_, pool_);
                memory += quantized_bytes(x, 32 << at);
            }
    }
    const auto run = [&](int64_t first, int64_t last) {
        for (const LinearPart& part : parts) {
            const Weight& w = *part.weight;
            const int64_t count = (w.rows + kPanelRows - 1) / kPanelRows, end = std::min(last, count);
            if (first < end) {
                if (is_panels(w))
                    kernels_.panel_linear(view_panels(w), quantized[slot(w).first][slot(w).second],
                                          LinearOutput{part.y.data, part.y.stride, part.bias, part.accumulate}, first, end);
                else
                    float_part(x, part, first, end);
            }
            first = std::max<int64_t>(0, first - count), last -= count;
            if (last <= 0) return;
        }
    };
    if (work < kSmallLinear)
        run(0, units);
    else
        pool_.parallel_for(units, 1, run);
}

}  // namespace halfbyte::cpu
