// Linear layers: y = W x + b and what the adapters of the batch make of it, beside the weights.
#include <algorithm>
#include <vector>

#include "nn/adapter.h"
#include "nn/adapter_rows.h"
#include "nn/layers.h"

namespace halfbyte {

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

bool changes_norm(const Context& context, const Norm& norm) {
    return changes(context, norm.module, [](const ModuleAdapter& m) { return m.norm != nullptr; });
}

}  // namespace

LinearInput rms_normed(const Context& context, const Norm& norm, const Tensor& x) {
    if (changes_norm(context, norm)) return plain(rms_norm(context, norm, x));
    return input_of(x, transform_of(norm, Kind::rms_norm), context.tensor(x.rows, x.cols), false);
}

LinearInput layer_normed(const Context& context, const Norm& norm, const Tensor& x) {
    if (changes_norm(context, norm)) return plain(layer_norm(context, norm, x));
    return input_of(x, transform_of(norm, Kind::layer_norm), context.tensor(x.rows, x.cols), false);
}

LinearInput layer_normed_in_place(const Context& context, const Norm& norm, const Tensor& x) {
    if (changes_norm(context, norm)) {
        layer_norm(context, norm, x, x);
        return plain(x);
    }
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

LinearPart part_of(const Linear& layer, const Tensor& y, bool accumulate) {
    LinearPart part;
    part.weight = &layer.weight, part.bias = static_cast<const float*>(layer.bias.data);
    part.y = y, part.accumulate = accumulate;
    return part;
}

bool does_anything(const LinearAdapter& adapter) {
    return adapter.lora.rank > 0 || adapter.gain.data != nullptr || adapter.shift.data != nullptr;
}

/// The parts of one call with the adapters of the batch for each, in one call of the device.
class Parts {
public:
    Parts(const Context& context, size_t count) : context_(context) {
        parts_.reserve(count);
        adapters_.reserve(count * context.batch.adapters.size());  // spans into it are kept
    }
    void add(const Linear& layer, const Tensor& y, bool accumulate) {
        LinearPart& part = parts_.emplace_back(part_of(layer, y, accumulate));
        const size_t first = adapters_.size();
        bool any = false;
        for (const Adapter* adapter : context_.batch.adapters) {
            const ModuleAdapter* module = adapter->find(layer.module, context_.pass);
            const bool acts = module != nullptr && !module->replaced && does_anything(module->linear);
            adapters_.push_back(acts ? &module->linear : nullptr);
            any = any || acts;
        }
        if (any) part.adapters = std::span<const LinearAdapter* const>(adapters_).subspan(first);
    }
    void run(LinearInput input) const {
        input.adapter_rows = context_.batch.adapter_rows;
        context_.device.fused_linear(input, parts_);
    }

private:
    const Context& context_;
    std::vector<LinearPart> parts_;
    std::vector<const LinearAdapter*> adapters_;
};

/// True where a layer is more than its product and sums beside it: another weight or another input for some rows, or a gain of
/// outputs that are to be added to something.
bool is_special(const Context& context, const Linear& layer, bool accumulate) {
    return changes(context, layer.module, [&](const ModuleAdapter& m) {
        return m.replaced || m.input_gain.data != nullptr || !m.columns.empty() ||
               (accumulate && m.linear.gain.data != nullptr);
    });
}

/// Rows of x times the weight that an adapter has in the place of the layer's.
void replaced_rows(const Context& context, const ModuleAdapter& module, const Tensor& x, const Tensor& y) {
    LinearPart part = part_of(*module.replaced, y.columns(0, module.replaced->out_features), false);
    const LinearAdapter* adapter = &module.linear;
    const AdapterRows all;
    LinearInput input = plain(x);
    if (does_anything(module.linear)) part.adapters = {&adapter, 1}, input.adapter_rows = {&all, 1};
    context.device.fused_linear(input, {&part, 1});
}

/// y = layer(x) for a layer that is_special(), x transformed already. y: [rows, the widest weight of any row]; columns that a row
/// has none for are undefined.
void special_linear(const Context& context, const Linear& layer, const Tensor& x, const Tensor& y) {
    const Workspace::Scope scope(context.workspace);
    Tensor input = x;
    if (changes(context, layer.module, [](const ModuleAdapter& m) { return m.input_gain.data != nullptr; })) {
        input = context.tensor(x.rows, x.cols);
        std::vector<int32_t> all(static_cast<size_t>(x.rows));
        for (size_t r = 0; r < all.size(); r++) all[r] = int32_t(r);
        context.device.gather_rows(x, all, input);
        for_changed_rows(context, layer.module, x.rows, [&](const ModuleAdapter& m, int64_t first, int64_t count) {
            if (m.input_gain.data != nullptr)
                context.device.scale_columns(input.row_range(first, count), static_cast<const float*>(m.input_gain.data));
        });
    }
    int64_t replaced = 0;
    for_changed_rows(context, layer.module, x.rows,
                     [&](const ModuleAdapter& m, int64_t, int64_t count) { replaced += m.replaced ? count : 0; });
    if (replaced < x.rows) {
        Parts base(context, 1);
        base.add(layer, y.columns(0, layer.out_features), false);
        base.run(plain(input));
    }
    for_changed_rows(context, layer.module, x.rows, [&](const ModuleAdapter& m, int64_t first, int64_t count) {
        const Tensor rows = input.row_range(first, count), out = y.row_range(first, count);
        if (m.replaced) replaced_rows(context, m, rows, out);
        if (m.columns.empty()) return;
        const Tensor columns = context.tensor(count, int64_t(m.columns.size()));
        const LinearPart part = part_of(*m.row_outputs, columns, false);
        context.device.fused_linear(plain(rows), {&part, 1});
        context.device.scatter_columns(columns, m.columns, out);
    });
}

int64_t widest(const Context& context, const Linear& layer) {
    int64_t width = layer.out_features;
    for (const Adapter* adapter : context.batch.adapters)
        if (const ModuleAdapter* m = adapter->find(layer.module, context.pass); m != nullptr && m->replaced)
            width = std::max(width, m->replaced->out_features);
    return width;
}

}  // namespace

void linear(const Context& context, std::initializer_list<const Linear*> layers, const LinearInput& input,
            std::initializer_list<Tensor*> ys) {
    const bool special =
        std::any_of(layers.begin(), layers.end(), [&](const Linear* layer) { return is_special(context, *layer, false); });
    Parts parts(context, layers.size());
    auto y = ys.begin();
    for (const Linear* layer : layers) {
        **y = context.tensor(input.x.rows, special ? widest(context, *layer) : layer->out_features);
        parts.add(*layer, **y++, false);
    }
    if (!special) return parts.run(input);
    const Tensor x = context.device.transform_rows(input);
    y = ys.begin();
    for (const Linear* layer : layers) special_linear(context, *layer, x, **y++);
}

Tensor linear(const Context& context, const Linear& layer, const LinearInput& input) {
    Tensor y;
    linear(context, {&layer}, input, {&y});
    return y;
}

Tensor linear(const Context& context, const Linear& layer, const Tensor& x) { return linear(context, layer, plain(x)); }

void linear_add(const Context& context, const Linear& layer, const LinearInput& input, Tensor residual) {
    if (!is_special(context, layer, true)) {
        Parts parts(context, 1);
        parts.add(layer, residual, true);
        return parts.run(input);
    }
    const Workspace::Scope scope(context.workspace);
    const Tensor x = context.device.transform_rows(input);
    const Tensor y = context.tensor(x.rows, layer.out_features);
    special_linear(context, layer, x, y);
    context.device.add(residual, y);
}

void linear_add(const Context& context, const Linear& layer, const Tensor& x, Tensor residual) {
    linear_add(context, layer, plain(x), residual);
}

}  // namespace halfbyte
