// What a fused linear call means, in the words of the small ops; also what a device runs that has no better answer.
#include <numeric>
#include <vector>

#include "core/error.h"
#include "device/device.h"

namespace halfbyte {

Tensor Device::transform_rows(const LinearInput& input) {
    const RowTransform& transform = input.transform;
    Tensor x = input.x;
    if (transform.kind == RowTransform::Kind::rms_norm) {
        x = input.transformed;
        rms_norm(input.x, transform.gamma, transform.eps, x);
    } else if (transform.kind == RowTransform::Kind::layer_norm) {
        x = input.transformed;
        layer_norm(input.x, transform.gamma, transform.beta, transform.eps, x);
    } else if (transform.kind != RowTransform::Kind::none) {
        x = input.transformed;
        if (x.data != input.x.data) {
            std::vector<int32_t> rows(static_cast<size_t>(x.rows));
            std::iota(rows.begin(), rows.end(), 0);
            gather_rows(input.x, rows, x);
        }
        if (transform.kind == RowTransform::Kind::activation)
            activate(transform.activation, x);
        else
            gated_activation(transform.activation, x, transform.up);
    }
    return x;
}

void Device::sample(const Tensor&, std::span<const Draw>, std::span<int32_t>) {
    fail(ErrorCode::internal, description(), ": sample: this device leaves it to the host");
}

void Device::fused_linear(const LinearInput& input, std::span<const LinearPart> parts) {
    const Tensor x = transform_rows(input);
    linear(x, parts);
    for (const LinearPart& part : parts)
        if (!part.adapters.empty()) adapt(x, part.adapters, input.adapter_rows, part.bias, part.y);
}

}  // namespace halfbyte
