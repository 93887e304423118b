// Products: few rows straight from float32, many on tensor cores, all of them in float32 where nothing may be rounded.
#include <algorithm>
#include <cstddef>

#include "cuda/cuda_device.h"

namespace halfbyte::cuda {

namespace {

using Kind = RowTransform::Kind;

int64_t padded(int64_t cols) { return (cols + kTileCols - 1) / kTileCols * kTileCols; }

/// What a command with room for kMaxParts parts needs of its bytes.
template <class Command>
size_t bytes_of(const Command& command) {
    return offsetof(Command, part) + size_t(command.parts) * sizeof(LinearPart);
}

void check_shapes(const Tensor& x, std::span<const halfbyte::LinearPart> parts) {
    for (const halfbyte::LinearPart& part : parts)
        expect(part.weight->cols == x.cols && part.y.rows == x.rows && part.y.cols == part.weight->rows, "linear: x [",
               x.rows, ", ", x.cols, "], W [", part.weight->rows, ", ", part.weight->cols, "], y [", part.y.rows, ", ",
               part.y.cols, "]");
}

LinearPart part_of(const halfbyte::LinearPart& part, const TiledWeight& weight) {
    return {weight, part.bias, part.y.data, part.y.stride, int32_t(part.accumulate)};
}

/// Up to kMaxParts parts that can share one command: codes that pass through the two passages can't, beyond two of them.
std::span<const halfbyte::LinearPart> next_group(std::span<const halfbyte::LinearPart>& parts) {
    size_t count = 0, streamed = 0;
    while (count < parts.size() && count < kMaxParts) {
        streamed += device_weight(*parts[count].weight).host_codes != nullptr;
        if (streamed > 2) break;
        count++;
    }
    const auto group = parts.first(count);
    parts = parts.subspan(count);
    return group;
}

}  // namespace

void CudaDevice::products(const Tensor& x, std::span<const halfbyte::LinearPart> parts) {
    const auto held = core_->lock();
    if (precision_ == Precision::float32) {
        for (const halfbyte::LinearPart& part : parts)
            core_->queue().push(Op::linear_f32, LinearF32{x.data, x.stride, int32_t(x.rows),
                                                          part_of(part, here(device_weight(*part.weight)))});
        return;
    }
    while (!parts.empty()) {
        const auto group = next_group(parts);
        Gemv command{};
        command.partials = core_->partials(), command.counters = core_->counters();
        command.x = x.data, command.x_stride = x.stride;
        command.rows = int32_t(x.rows), command.parts = int32_t(group.size());
        for (size_t i = 0; i < group.size(); i++) command.part[i] = part_of(group[i], here(device_weight(*group[i].weight)));
        core_->queue().append(Op::gemv, &command, bytes_of(command));
    }
}

void CudaDevice::tensor_products(const void* x_bf16, int64_t rows, std::span<const halfbyte::LinearPart> parts) {
    while (!parts.empty()) {
        const auto group = next_group(parts);
        Gemm command{};
        command.partials = core_->partials(), command.counters = core_->counters();
        command.x = x_bf16;
        command.rows = int32_t(rows), command.parts = int32_t(group.size());
        for (size_t i = 0; i < group.size(); i++) command.part[i] = part_of(group[i], here(device_weight(*group[i].weight)));
        core_->queue().append(Op::gemm, &command, bytes_of(command));
    }
}

void CudaDevice::linear(const Tensor& x, std::span<const halfbyte::LinearPart> parts) {
    LinearInput input;
    input.x = x;
    std::vector<halfbyte::LinearPart> plain(parts.begin(), parts.end());
    for (halfbyte::LinearPart& part : plain) part.adapters = {};
    fused_linear(input, plain);
}

void CudaDevice::fused_linear(const LinearInput& input, std::span<const halfbyte::LinearPart> parts) {
    const Tensor& x = input.x;
    check_shapes(x, parts);
    if (x.rows == 0) return;
    const RowTransform& of = input.transform;
    const bool adapted = std::ranges::any_of(parts, [](const auto& part) { return !part.adapters.empty(); });
    const bool on_tensor_cores = precision_ != Precision::float32 && x.rows > kGemvRows;
    const bool transforms = of.kind != Kind::none;
    const bool wants_floats = transforms && (!on_tensor_cores || input.keep || adapted);
    const Tensor rows = transforms ? input.transformed : x;
    if (transforms || on_tensor_cores) {
        TransformRows command = rows_of(x);
        command.kind = of.kind == Kind::rms_norm           ? Transform::rms_norm
                       : of.kind == Kind::layer_norm       ? Transform::layer_norm
                       : of.kind == Kind::activation       ? Transform::activation
                       : of.kind == Kind::gated_activation ? Transform::gated_activation
                                                           : Transform::none;
        command.activation = Activation(of.activation);
        command.gamma = of.gamma, command.beta = of.beta, command.eps = of.eps;
        command.up = of.up.data, command.up_stride = of.up.stride;
        if (wants_floats) command.out = rows.data, command.out_stride = rows.stride;
        const auto held = core_->lock();
        if (on_tensor_cores) {
            command.padded_cols = int32_t(padded(x.cols));
            command.out_bf16 = core_->scratch(size_t(x.rows) * size_t(command.padded_cols) * 2);
        }
        core_->queue().push(Op::transform_rows, command);
        if (on_tensor_cores) tensor_products(command.out_bf16, x.rows, parts);
    }
    if (!on_tensor_cores) {
        // A product may have many rows in float32 only; else kGemvRows at the most.
        products(rows, parts);
    }
    for (const halfbyte::LinearPart& part : parts)
        if (!part.adapters.empty()) adapt(rows, part.adapters, input.adapter_rows, part.bias, part.y);
}

}  // namespace halfbyte::cuda
