// Linear layers and the only place where adapters meet them: y = W x + b + sum of scale * B (A x), unmerged.
#include <vector>

#include "nn/adapter.h"
#include "nn/layers.h"

namespace halfbyte {

size_t Adapter::bytes() const {
    size_t total = 0;
    for (const LoraFactors& factors : by_module_) total += factors.a.bytes + factors.b.bytes;
    return total;
}

namespace {

using Kind = RowTransform::Kind;

RowTransform transform_of(const Norm& norm, Kind kind) {
    RowTransform transform{.kind = kind};
    transform.gamma = static_cast<const float*>(norm.gamma.data);
    transform.beta = static_cast<const float*>(norm.beta.data);
    transform.eps = norm.eps;
    return transform;
}

LinearInput input_of(const Tensor& x, const RowTransform& transform, const Tensor& transformed, bool keep) {
    LinearInput input;
    input.x = x, input.transform = transform, input.transformed = transformed, input.keep = keep;
    return input;
}

LinearInput plain(const Tensor& x) { return input_of(x, {}, {}, false); }

}  // namespace

LinearInput rms_normed(const Context& context, const Norm& norm, const Tensor& x) {
    return input_of(x, transform_of(norm, Kind::rms_norm), context.tensor(x.rows, x.cols), false);
}

LinearInput layer_normed(const Context& context, const Norm& norm, const Tensor& x) {
    return input_of(x, transform_of(norm, Kind::layer_norm), context.tensor(x.rows, x.cols), false);
}

LinearInput layer_normed_in_place(const Norm& norm, const Tensor& x) {
    return input_of(x, transform_of(norm, Kind::layer_norm), x, true);
}

LinearInput activated(Activation activation, const Tensor& x) {
    RowTransform transform{.kind = Kind::activation};
    transform.activation = activation;
    return input_of(x, transform, x, false);
}

LinearInput gated(Activation activation, const Tensor& gate, const Tensor& up) {
    RowTransform transform{.kind = Kind::gated_activation};
    transform.activation = activation, transform.up = up;
    return input_of(gate, transform, gate, false);
}

namespace {

/// The parts of one call with the adapters of the batch for each.
class Parts {
public:
    Parts(const Context& context, size_t count) : context_(context) {
        parts_.reserve(count);
        adapters_.reserve(count * context.batch.adapters.size());  // spans into it are kept
    }
    void add(const Linear& layer, const Tensor& y, bool accumulate) {
        LinearPart& part = parts_.emplace_back();
        part.weight = &layer.weight, part.bias = static_cast<const float*>(layer.bias.data);
        part.y = y, part.accumulate = accumulate;
        const size_t first = adapters_.size();
        bool any = false;
        for (const Adapter* adapter : context_.batch.adapters) {
            adapters_.push_back(adapter->find(layer.module));
            any = any || adapters_.back() != nullptr;
        }
        if (any) part.adapters = std::span<const LoraFactors* const>(adapters_).subspan(first);
    }
    void run(LinearInput input) const {
        input.row_adapter = context_.batch.row_adapter;
        context_.device.fused_linear(input, parts_);
    }

private:
    const Context& context_;
    std::vector<LinearPart> parts_;
    std::vector<const LoraFactors*> adapters_;
};

}  // namespace

void linear(const Context& context, std::initializer_list<const Linear*> layers, const LinearInput& input,
            std::initializer_list<Tensor*> ys) {
    Parts parts(context, layers.size());
    auto y = ys.begin();
    for (const Linear* layer : layers) {
        **y = context.tensor(input.x.rows, layer->out_features);
        parts.add(*layer, **y++, false);
    }
    parts.run(input);
}

Tensor linear(const Context& context, const Linear& layer, const LinearInput& input) {
    Tensor y;
    linear(context, {&layer}, input, {&y});
    return y;
}

Tensor linear(const Context& context, const Linear& layer, const Tensor& x) { return linear(context, layer, plain(x)); }

void linear_add(const Context& context, const Linear& layer, const LinearInput& input, Tensor residual) {
    Parts parts(context, 1);
    parts.add(layer, residual, true);
    parts.run(input);
}

void linear_add(const Context& context, const Linear& layer, const Tensor& x, Tensor residual) {
    linear_add(context, layer, plain(x), residual);
}

}  // namespace halfbyte
