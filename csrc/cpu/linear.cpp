// Linear layers: one parallel region over rows of the input; where these are few, one over rows and one over the outputs of all
// parts.
#include <algorithm>
#include <cstring>

#include "cpu/adapters.h"
#include "cpu/cpu_device.h"
#include "cpu/memory.h"
#include "cpu/panels.h"
#include "cpu/quantizer.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

namespace {

constexpr int64_t kSmallLinear = int64_t(1) << 16;  // multiplications below which a second thread costs more than it saves
constexpr int64_t kSmallRows = 16384;               // the same for additions on the way into the product
constexpr int64_t kLineFloats = 16;                 // of a line of the cache
constexpr int64_t kManyRows = 9;                    // from here on panels are multiplied
constexpr int64_t kRowsOfThread = 96;               // from here on each thread takes rows of its own
constexpr int64_t kGroupRows = 256;                 // at a time, at most
constexpr int64_t kTogether = 2;                    // at a time: a thread that is left with one is slow

int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

/// What an element of a row costs on its way into the product, next to an addition.
int64_t cost_of(const RowTransform& transform) {
    switch (transform.kind) {
        case RowTransform::Kind::none: return 1;
        case RowTransform::Kind::rms_norm:
        case RowTransform::Kind::layer_norm: return 2;
        case RowTransform::Kind::activation:
        case RowTransform::Kind::gated_activation: return 4;
    }
    return 1;
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

const float* CpuDevice::transformed_row(const LinearInput& input, int64_t r, float* transformed) const {
    const RowTransform& transform = input.transform;
    float* row = input.x.row(r);
    if (transform.kind == RowTransform::Kind::none) return row;
    const auto cols = input.x.cols;
    if (transform.kind == RowTransform::Kind::activation || transform.kind == RowTransform::Kind::gated_activation) {
        if (transformed != nullptr && transformed != row) {
            std::memcpy(transformed, row, size_t(cols) * sizeof(float));
            row = transformed;
        } else if (transformed == nullptr && input.transformed.data != input.x.data) {  // x must stay as it is
            transformed = static_cast<float*>(scratch(Scratch::row, size_t(cols) * sizeof(float)));
            std::memcpy(transformed, row, size_t(cols) * sizeof(float));
            row = transformed;
        }
        const auto kind = size_t(transform.activation);
        if (transform.kind == RowTransform::Kind::activation)
            kernels_.activation->activate[kind](row, cols);
        else
            kernels_.activation->gate[kind](row, transform.up.row(r), cols);
        return row;
    }
    if (transformed == nullptr) transformed = static_cast<float*>(scratch(Scratch::row, size_t(cols) * sizeof(float)));
    if (transform.kind == RowTransform::Kind::rms_norm)
        kernels_.rms_norm(row, cols, transform.gamma, transform.eps, transformed);
    else
        kernels_.layer_norm(row, cols, transform.gamma, transform.beta, transform.eps, transformed);
    return transformed;
}

void CpuDevice::linear(const Tensor& x, std::span<const LinearPart> parts) {
    LinearInput input;
    input.x = x;
    AdapterCall none(kernels_, {}, {}, 0);
    linear(input, parts, none);
}

void CpuDevice::fused_linear(const LinearInput& input, std::span<const LinearPart> parts) {
    AdapterCall adapters(kernels_, parts, input.adapter_rows, input.x.rows);
    linear(input, parts, adapters);
}

void CpuDevice::linear(const LinearInput& input, std::span<const LinearPart> parts, AdapterCall& adapters) {
    const Tensor& x = input.x;
    const bool transforms = input.transform.kind != RowTransform::Kind::none;
    if (transforms) expect_same_shape(x, input.transformed, "linear");
    if (input.transform.kind == RowTransform::Kind::gated_activation) expect_same_shape(x, input.transform.up, "linear");
    int64_t units = 0, work = 0;  // units of 16 output columns
    Quantizers::Wanted wanted;    // activations as integers
    bool floats = false;          // and as they are
    const auto form_of = [&](const Panels& w) { return activation_form(w, precision_, kernels_); };
    for (const LinearPart& part : parts) {
        const Weight& w = *part.weight;
        expect(w.cols == x.cols && part.y.rows == x.rows && part.y.cols == w.rows, "linear: x [", x.rows, ", ", x.cols,
               "], weight [", w.rows, ", ", w.cols, "], y [", part.y.rows, ", ", part.y.cols, "]");
        expect(!is_panels(w) || is_panels(w, isa_),
               "linear: the weight was uploaded to a device with another instruction set");
        if (is_panels(w)) {
            const Panels panels = view_panels(w);
            wanted.add(panels, form_of(panels));
        } else {
            floats = true;
        }
        units += panels_of(w.rows);
        work += w.rows * x.rows * x.cols;
    }
    if (x.rows == 0) return;

    const bool write = transforms && (floats || input.keep || !adapters.empty());
    const Tensor multiplied = write ? input.transformed : x;
    const bool few_rows = adapters.few_rows(pool_);
    if (!adapters.empty()) adapters.prepare(multiplied, few_rows);
    const bool adapts_rows = !adapters.empty() && !few_rows;

    // Rows are transformed, made integers and multiplied by the A of their adapters.
    const auto prepare = [&](Quantizers& quantizers, int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            // Perhaps written by another core: ask for the next one while this one is made.
            if (r + 1 < last)
                for (int64_t k = 0; k < x.cols; k += kLineFloats) __builtin_prefetch(x.row(r + 1) + k);
            quantizers.quantize(kernels_, r, transformed_row(input, r, write ? multiplied.row(r) : nullptr));
        }
        if (adapts_rows) adapters.multiply_rows(first, last);
    };
    // The products, 16 outputs of a part at a time, and on top of them what its adapters add.
    const auto multiply = [&](const Quantizers& quantizers, int64_t first, int64_t last, int64_t first_row,
                              int64_t last_row) {
        for (size_t p = 0; p < parts.size() && last > 0; p++) {
            const LinearPart& part = parts[p];
            const Weight& w = *part.weight;
            const int64_t count = panels_of(w.rows), end = std::min(last, count);
            if (first < end) {
                if (few_rows && !adapters.empty()) adapters.prefetch(p, first, end);  // arrives during the product
                if (is_panels(w)) {
                    const Panels panels = view_panels(w);
                    const QuantizedRows rows = quantizers.rows(panels, form_of(panels));
                    kernels_.panel_linear(panels, rows, LinearOutput{part.y.data, part.y.stride, part.bias, part.accumulate},
                                          first, end,
                                          scratch(Scratch::unpacked, panel_scratch(w.cols, rows.count, end - first)));
                } else {
                    float_part(multiplied, part, first, end);
                }
                if (!adapters.empty()) adapters.apply(p, part.y, first, end, first_row, last_row);
            }
            first = std::max<int64_t>(0, first - count), last -= count;
        }
    };
    const auto memory = [&](int64_t rows) {
        return static_cast<char*>(scratch(Scratch::quantized, wanted.bytes(rows, x.cols)));
    };

    // Many rows: each thread takes rows of its own through all of it, so that what it reads was written by itself, by the call
    // before as well. As many groups for each thread.
    if (!floats && x.rows >= kRowsOfThread * pool_.threads()) {
        const int64_t threads = pool_.threads(), least = (x.rows + kGroupRows - 1) / kGroupRows;
        const int64_t groups = (least + threads - 1) / threads * threads;
        const auto begin_of = [&](int64_t group) {
            return std::min(x.rows, (x.rows * group / groups + kWholeTiles - 1) / kWholeTiles * kWholeTiles);
        };
        pool_.parallel_for(groups, 1, [&](int64_t first, int64_t last) {
            for (int64_t group = first; group < last; group++) {
                const int64_t begin = begin_of(group), end = begin_of(group + 1);
                Quantizers quantizers(wanted, begin, end - begin, x.cols, memory(end - begin));
                prepare(quantizers, begin, end);
                multiply(quantizers, 0, units, begin, end);
            }
        });
        return;
    }

    // Few rows: one region over rows, and one over outputs.
    Quantizers quantizers(wanted, 0, x.rows, x.cols, memory(x.rows));
    if (transforms || wanted.any() || adapts_rows) {
        const int64_t grain = kSmallRows / std::max<int64_t>(1, x.cols * cost_of(input.transform));
        pool_.parallel_for(x.rows, adapts_rows ? std::max<int64_t>(8, std::min<int64_t>(grain, 32)) : grain,
                           [&](int64_t first, int64_t last) { prepare(quantizers, first, last); });
    }
    if (!adapters.empty() && few_rows) adapters.multiply_all(pool_);
    if (work < kSmallLinear)
        multiply(quantizers, 0, units, 0, x.rows);
    else
        pool_.parallel_for(units, x.rows < kManyRows ? 1 : kTogether,
                           [&](int64_t first, int64_t last) { multiply(quantizers, first, last, 0, x.rows); });
}

}  // namespace halfbyte::cpu
