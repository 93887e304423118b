// Linear layers and the only place where LoRA is computed: y = W x + b + sum of scale * B (A x), unmerged.
#include <vector>

#include "nn/adapter.h"
#include "nn/layers.h"

namespace halfbyte {

size_t Adapter::bytes() const {
    size_t total = 0;
    for (const Factors& factors : by_module_) total += factors.a.bytes + factors.b.bytes;
    return total;
}

namespace {

LinearPart part(const Linear& layer, Tensor y, bool accumulate) {
    return {&layer.weight, static_cast<const float*>(layer.bias.data), y, accumulate};
}

void add_adapters(const Context& context, const Linear& layer, const Tensor& x, Tensor y) {
    const auto adapters = context.batch.adapters;
    if (adapters.empty() || layer.module < 0) return;
    std::vector<LoraFactors> factors(adapters.size());  // rank 0 where an adapter leaves this layer alone
    bool any = false;
    for (size_t i = 0; i < adapters.size(); i++) {
        if (const LoraFactors* found = adapters[i]->find(layer.module)) factors[i] = *found, any = true;
    }
    if (any) context.device.lora(x, factors, context.batch.row_adapter, y);
}

}  // namespace

void linear(const Context& context, std::initializer_list<const Linear*> layers, const Tensor& x,
            std::initializer_list<Tensor*> ys) {
    std::vector<LinearPart> parts;
    auto y = ys.begin();
    for (const Linear* layer : layers) {
        **y = context.tensor(x.rows, layer->out_features);
        parts.push_back(part(*layer, **y++, false));
    }
    context.device.linear(x, parts);
    y = ys.begin();
    for (const Linear* layer : layers) add_adapters(context, *layer, x, **y++);
}

Tensor linear(const Context& context, const Linear& layer, const Tensor& x) {
    Tensor y;
    linear(context, {&layer}, x, {&y});
    return y;
}

void linear_add(const Context& context, const Linear& layer, const Tensor& x, Tensor residual) {
    const LinearPart only = part(layer, residual, true);
    context.device.linear(x, {&only, 1});
    add_adapters(context, layer, x, residual);
}

}  // namespace halfbyte
