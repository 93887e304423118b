// Linear layers: one parallel region over the rows of the input, one over the outputs of all parts.
#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

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
constexpr int64_t kManyRows = 9;                    // from here on panels are multiplied
constexpr int64_t kTogether = 2;                    // at a time: a thread that is left with one is slow

constexpr int kBlocks = 3;  // 32, 64 and 128 columns that share a scale
int block_index(const Weight& panels) { return std::countr_zero(unsigned(panels.block_size)) - 5; }

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
    int64_t units = 0, work = 0;                  // units of 16 output columns
    bool wanted[kActivationForms][kBlocks] = {};  // activations as integers of a form, in blocks of a size
    bool floats = false;                          // and as they are
    const auto form_of = [&](const Weight& w) { return activation_form(view_panels(w), precision_, kernels_); };
    for (const LinearPart& part : parts) {
        const Weight& w = *part.weight;
        expect(w.cols == x.cols && part.y.rows == x.rows && part.y.cols == w.rows, "linear: x [", x.rows, ", ", x.cols,
               "], weight [", w.rows, ", ", w.cols, "], y [", part.y.rows, ", ", part.y.cols, "]");
        expect(!is_panels(w) || is_panels(w, isa_),
               "linear: the weight was uploaded to a device with another instruction set");
        (is_panels(w) ? wanted[form_of(w)][block_index(w)] : floats) = true;
        units += panels_of(w.rows);
        work += w.rows * x.rows * x.cols;
    }
    if (x.rows == 0) return;

    // First region: every row is transformed, made integers and multiplied by the A of its adapters.
    size_t bytes = 1;
    for (const auto& form : wanted)
        for (int at = 0; at < kBlocks; at++) bytes += form[at] ? Quantizer::bytes(x, 32 << at) : 0;
    auto* memory = static_cast<char*>(scratch(Scratch::quantized, bytes));
    std::optional<Quantizer> quantizers[kActivationForms][kBlocks];
    bool integers = false;
    for (int form = 0; form < kActivationForms; form++)
        for (int at = 0; at < kBlocks; at++) {
            if (!wanted[form][at]) continue;
            quantizers[form][at].emplace(x, 32 << at, ActivationForm(form), memory);
            memory += Quantizer::bytes(x, 32 << at);
            integers = true;
        }
    const bool write = transforms && (floats || input.keep || !adapters.empty());
    const Tensor multiplied = write ? input.transformed : x;
    const bool few_rows = adapters.few_rows(pool_);
    if (!adapters.empty()) adapters.prepare(multiplied, few_rows);
    const bool by_rows = !adapters.empty() && !few_rows;
    const auto prepare = [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            const float* row = transformed_row(input, r, write ? multiplied.row(r) : nullptr);
            for (auto& form : quantizers)
                for (std::optional<Quantizer>& each : form)
                    if (each) each->quantize(kernels_, r, row);
        }
        if (by_rows) adapters.multiply_rows(first, last);
    };
    if (transforms || integers || by_rows) {
        const int64_t grain = kSmallRows / std::max<int64_t>(1, x.cols * cost_of(input.transform));
        pool_.parallel_for(x.rows, by_rows ? std::max<int64_t>(8, std::min<int64_t>(grain, 32)) : grain, prepare);
    }
    if (!adapters.empty() && few_rows) adapters.multiply_all(pool_);

    // Second region: the products, 16 outputs of a part at a time, and on top of them what its adapters add.
    QuantizedRows quantized[kActivationForms][kBlocks];
    for (int form = 0; form < kActivationForms; form++)
        for (int at = 0; at < kBlocks; at++)
            if (quantizers[form][at]) quantized[form][at] = quantizers[form][at]->rows();
    const auto run = [&](int64_t first, int64_t last) {
        for (size_t p = 0; p < parts.size(); p++) {
            const LinearPart& part = parts[p];
            const Weight& w = *part.weight;
            const int64_t count = panels_of(w.rows), end = std::min(last, count);
            if (first < end) {
                if (few_rows && !adapters.empty()) adapters.prefetch(p, first, end);  // arrives during the product
                if (is_panels(w))
                    kernels_.panel_linear(view_panels(w), quantized[form_of(w)][block_index(w)],
                                          LinearOutput{part.y.data, part.y.stride, part.bias, part.accumulate}, first, end,
                                          scratch(Scratch::unpacked, kPanelScratch));
                else
                    float_part(multiplied, part, first, end);
                if (!adapters.empty()) adapters.apply(p, part.y, first, end);
            }
            first = std::max<int64_t>(0, first - count), last -= count;
            if (last <= 0) return;
        }
    };
    if (work < kSmallLinear)
        run(0, units);
    else
        pool_.parallel_for(units, x.rows < kManyRows ? 1 : kTogether, run);
}

}  // namespace halfbyte::cpu
