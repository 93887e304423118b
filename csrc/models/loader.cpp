#include "models/loader.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "storage/encode.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

// Adapters name layers as Hugging Face does, also those of a GGUF file.
std::string hf_name(std::string_view prefix, std::string_view name) { return std::string(prefix).append(name); }

bool same_values(const Weight& a, const Weight& b) {
    if (a.storage != b.storage || a.rows != b.rows || a.cols != b.cols) return false;
    for (size_t i = 0; i < a.planes.size(); i++) {
        const Plane &p = a.planes[i], &q = b.planes[i];
        if (p.bytes != q.bytes || (p.bytes > 0 && p.data != q.data && std::memcmp(p.data, q.data, p.bytes) != 0))
            return false;
    }
    return true;
}

}  // namespace

Loader::Loader(const Checkpoint& checkpoint, Device& device, const LoadOptions& options)
    : checkpoint_(checkpoint), device_(device), options_(options) {}

void Loader::at_layer(int64_t index, std::string_view hf, std::string_view gguf) {
    hf_prefix_ = concat(hf, index, ".");
    gguf_prefix_ = concat(gguf, index, ".");
}

void Loader::at_root() { hf_prefix_.clear(), gguf_prefix_.clear(); }

std::string Loader::canonical(Name name) const {
    return checkpoint_.has_gguf_names() ? std::string(gguf_prefix_).append(name.gguf) : hf_name(hf_prefix_, name.hf);
}

std::string Loader::find(Name name, std::string_view suffix) const {
    if ((checkpoint_.has_gguf_names() ? name.gguf : name.hf).empty()) return "";
    std::string tensor = canonical(name).append(suffix);
    if (checkpoint_.contains(tensor)) return tensor;
    if (!checkpoint_.has_gguf_names() && !base_prefix_.empty() && tensor.starts_with(base_prefix_)) {
        tensor.erase(0, base_prefix_.size());
        if (checkpoint_.contains(tensor)) return tensor;
    }
    return "";
}

std::string Loader::require(Name name, std::string_view suffix) const {
    std::string tensor = find(name, suffix);
    if (tensor.empty()) {
        fail(ErrorCode::not_found, checkpoint_.path().string(), ": the tensor '", canonical(name), suffix,
             "' is missing; the file has ", checkpoint_.names().size(),
             " tensors, so either it is incomplete or its architecture is not '", config().architecture(), "'");
    }
    return tensor;
}

int64_t Loader::rows(Name name) const {
    const std::string tensor = require(name, ".weight");
    const std::vector<int64_t> shape = checkpoint_.shape(tensor);
    if (shape.size() != 2) {
        fail(ErrorCode::corrupt, checkpoint_.path().string(), ": tensor '", tensor, "' has ", shape.size(),
             " dimensions, expected a matrix");
    }
    return shape[0];
}

void Loader::check_shape(const std::string& tensor, const Weight& weight, int64_t rows, int64_t cols) const {
    if (weight.rows == rows && weight.cols == cols) return;
    fail(ErrorCode::corrupt, checkpoint_.path().string(), ": tensor '", tensor, "' is [", weight.rows, ", ", weight.cols,
         "], but ", config().where(), " calls for [", rows, ", ", cols, "]; one of the two belongs to another model");
}

Weight Loader::read(const std::string& tensor) {
    Weight weight = checkpoint_.weight(tensor);
    // A scale that is no number would turn up as NaN somewhere in the answer. Rows of no columns have none, however many they are.
    const int64_t rows = weight.cols == 0 ? 0 : weight.rows;
    const std::string where = concat(checkpoint_.path().string(), ": tensor '", tensor, "'");
    device_.host_pool().parallel_for(rows, 65536 / std::max<int64_t>(weight.cols, 1) + 1, [&](int64_t from, int64_t to) {
        for (int64_t row = from; row < to; row++) weight.storage->check_scales(weight, row, where);
    });
    read_.insert(tensor);
    if (options_.progress) options_.progress(double(read_.size()) / double(std::max<size_t>(checkpoint_.names().size(), 1)));
    return weight;
}

std::vector<float> Loader::read_vector(const std::string& tensor, int64_t size) {
    const Weight weight = read(tensor);
    if (weight.size() != size) {
        fail(ErrorCode::corrupt, checkpoint_.path().string(), ": tensor '", tensor, "' has ", weight.size(), " values, but ",
             config().where(), " calls for ", size, "; one of the two belongs to another model");
    }
    std::vector<float> values(static_cast<size_t>(size));
    decode(weight, values.data());
    return values;
}

std::vector<float> Loader::vector(Name name, int64_t size) {
    const std::string tensor = find(name, ".weight");
    if (!tensor.empty()) plan(tensor, name, ".weight", PlannedTensor::Role::vector, 1, size);
    return tensor.empty() ? std::vector<float>{} : read_vector(tensor, size);
}

Buffer Loader::to_device(const std::vector<float>& values) {
    Buffer buffer = device_.allocate(values.size() * sizeof(float));
    device_.copy_to_device(buffer.data, values.data(), values.size() * sizeof(float));
    return buffer;
}

Module& Loader::add_module(Name name, Module::Kind kind, int64_t in, int64_t out) {
    Module& module = modules_.emplace_back();
    module.name = module.base_name = hf_name(hf_prefix_, name.hf);
    if (!name.gguf.empty()) module.gguf_name = std::string(gguf_prefix_).append(name.gguf);
    module.kind = kind, module.in_features = in, module.out_features = out;
    if (module.name.starts_with(base_prefix_)) module.base_name.erase(0, base_prefix_.size());
    return module;
}

void Loader::report(const std::string& tensor, const Weight& weight) {
    weights_.push_back({tensor, std::string(weight.storage->name()), weight.rows, weight.cols, weight.bytes()});
}

void Loader::plan(const std::string& tensor, Name name, std::string_view suffix, PlannedTensor::Role role, int64_t rows,
                  int64_t cols, bool transposed, std::vector<int64_t> row_order) {
    if (options_.plan == nullptr) return;
    if (name.gguf.empty()) {
        fail(ErrorCode::unsupported, checkpoint_.path().string(), ": tensor '", tensor, "' has no name in GGUF files");
    }
    options_.plan->push_back({tensor, hf_name(hf_prefix_, name.hf).append(suffix),
                              std::string(gguf_prefix_).append(name.gguf).append(suffix), role, rows, cols, transposed,
                              std::move(row_order)});
}

Rounding Loader::rounding_of(Name name, const std::string& otherwise) const {
    const auto own = options_.layers.find(hf_name(hf_prefix_, name.hf));
    return own != options_.layers.end() ? own->second : Rounding{otherwise};
}

Weight Loader::rounded(const std::string& tensor, const Weight& weight, const Rounding& rounding) const {
    if (rounding.format.empty()) return weight;
    try {
        return encode(weight, {rounding.format, rounding.block_size, rounding.double_quant}, device_.host_pool());
    } catch (const Error& error) {
        fail(error.code(), checkpoint_.path().string(), ": tensor '", tensor, "': ", error.what());
    }
}

Linear Loader::linear(Name name, int64_t in, int64_t out, const LinearOptions& options) {
    const std::string tensor = require(name, ".weight");
    const std::string bias = options.bias_required ? require(name, ".bias") : find(name, ".bias");
    // bitsandbytes turns Conv1D weights to [out, in] before it quantises them, and so does llama.cpp's converter.
    Weight weight = options_.plan != nullptr ? checkpoint_.weight(tensor) : read(tensor);
    if (options.conv1d && !checkpoint_.has_gguf_names() && weight.storage->kind() == StorageKind::other)
        fail(ErrorCode::unsupported, checkpoint_.path().string(), ": tensor '", tensor, "' is [in, out] of the type ",
             weight.storage->name(), ", which halfbyte cannot turn round; save the model with float weights");
    const bool turned = options.conv1d && !checkpoint_.has_gguf_names() && weight.storage->kind() == StorageKind::floating;
    if (turned && options_.plan != nullptr)
        std::swap(weight.rows, weight.cols);
    else if (turned)
        weight = transposed(weight, device_.host_pool());
    check_shape(tensor, weight, out, in);  // before anything is as large as the config says
    std::vector<int64_t> order(static_cast<size_t>(options.row_of ? out : 0));
    for (size_t i = 0; i < order.size(); i++) order[i] = options.row_of(int64_t(i));
    if (options_.plan != nullptr) {
        read_.insert({tensor, bias});
        plan(tensor, name, ".weight", PlannedTensor::Role::linear, out, in, turned, order);
        if (!bias.empty()) plan(bias, name, ".bias", PlannedTensor::Role::vector, 1, out, false, order);
        return {};
    }
    const std::vector<int64_t> gguf_rows = order;
    if (checkpoint_.has_reference_rows()) order.clear();
    if (!order.empty()) weight = reorder_rows(weight, order);
    weight = rounded(tensor, weight, rounding_of(name, options.as_stored ? "" : options_.quantize));
    report(tensor, weight);

    Module& module = add_module(name, Module::Kind::linear, in, out);
    module.conv1d = options.conv1d, module.gguf_rows = gguf_rows;
    Linear layer{.weight = device_.upload(weight),
                 .bias = {},
                 .module = int(modules_.size()) - 1,
                 .in_features = in,
                 .out_features = out};
    if (!bias.empty()) {
        const std::vector<float> values = read_vector(bias, out);
        std::vector<float> ordered = values;
        for (size_t i = 0; i < order.size(); i++) ordered[i] = values[size_t(order[i])];
        layer.bias = to_device(ordered);
    }
    return module.linear = layer;
}

Embedding Loader::embedding(Name name, int64_t count, int64_t dim) {
    const std::string tensor = require(name, ".weight");
    if (options_.plan != nullptr) {
        check_shape(tensor, checkpoint_.weight(tensor), count, dim);
        read_.insert(tensor);
        plan(tensor, name, ".weight", PlannedTensor::Role::embedding, count, dim);
        return {};
    }
    const Weight weight = read(tensor);
    check_shape(tensor, weight, count, dim);
    report(tensor, weight);
    Module& module = add_module(name, Module::Kind::embedding, dim, count);
    module.is_input = std::ranges::count(modules_, Module::Kind::embedding, &Module::kind) == 1;
    return module.table = {
               .table = device_.upload_table(weight), .count = count, .dim = dim, .module = int(modules_.size()) - 1};
}

bool Loader::output_layer(Name own, Name embedding, int64_t in, int64_t out, TiedByDefault tied_by_default, Linear& layer) {
    const std::string tensor = find(own, ".weight"), table = require(embedding, ".weight");
    const bool tied = config().is_gguf() ? tensor.empty()
                                         : config().flag({"tie_word_embeddings", ""}, tied_by_default == TiedByDefault::yes);
    if (config().architecture().ends_with("Classification")) return false;
    if (!tied && tensor.empty()) {
        if (config().architecture().ends_with("Model")) return false;
        require(own, ".weight");
    }
    if (options_.plan != nullptr) {
        check_shape(tied ? table : tensor, checkpoint_.weight(tied ? table : tensor), out, in);
        read_.insert(tensor);
        if (!tied) plan(tensor, own, ".weight", PlannedTensor::Role::output, out, in);
        if (const std::string bias = find(own, ".bias"); !bias.empty()) {
            read_.insert(bias);
            plan(bias, own, ".bias", PlannedTensor::Role::vector, 1, out);
        }
        return true;
    }
    tied_output_ = tied;
    Weight weight = read(tied ? table : tensor);
    if (tied && !tensor.empty() && !same_values(weight, read(tensor))) {
        fail(ErrorCode::unsupported, config().where(), ": tie_word_embeddings is true, but '", tensor, "' and '", table,
             "' hold different values; set tie_word_embeddings to false to use both");
    }
    check_shape(tied ? table : tensor, weight, out, in);
    const Rounding rounding = rounding_of(own, options_.output_layer);
    const bool round = !rounding.format.empty();
    if (round) weight = rounded(tied ? table : tensor, weight, rounding);
    if (!tied || round) report(tied ? canonical(own) + ".weight" : tensor, weight);
    Module& module = add_module(own, Module::Kind::linear, in, out);
    module.is_output = true;
    layer = {.weight = device_.upload(weight, WeightUse::few_rows),
             .bias = {},
             .module = int(modules_.size()) - 1,
             .in_features = in,
             .out_features = out};
    const std::string bias = find(own, ".bias");
    if (!bias.empty()) layer.bias = to_device(read_vector(bias, out));
    module.linear = layer;
    return true;
}

void Loader::classification_head(Name name, Name pooler, int64_t hidden, Model& model) {
    if (options_.plan != nullptr) {  // no such names in GGUF files
        for (const Name& layer : {name, pooler}) {
            if (layer.hf.empty()) continue;
            ignore(concat(layer.hf, ".*"));
            if (layer.hf.starts_with(base_prefix_)) ignore(concat(layer.hf.substr(base_prefix_.size()), ".*"));
        }
        return;
    }
    model.info_.has_pooler = !pooler.hf.empty();
    if (!find(pooler, ".weight").empty()) model.pooler_ = linear(pooler, hidden, hidden);
    if (!find(name, ".weight").empty()) {
        model.info_.labels = rows(name);
        model.head_ = linear(name, hidden, model.info_.labels, {.as_stored = true});
        return;
    }
    Module& module = add_module(name, Module::Kind::linear, hidden, 0);
    module.linear.module = int(modules_.size()) - 1, module.linear.in_features = hidden;
    model.head_ = module.linear;
}

Norm Loader::rms_norm(Name name, int64_t dim, double eps) { return norm(name, dim, eps, false); }

Norm Loader::layer_norm(Name name, int64_t dim, double eps) { return norm(name, dim, eps, true); }

Norm Loader::norm(Name name, int64_t dim, double eps, bool has_beta) {
    if (!(eps >= 0 && eps <= double(std::numeric_limits<float>::max()))) {
        fail(ErrorCode::corrupt, config().where(), ": the epsilon of its norms is ", eps,
             ", expected a small number from 0 on");
    }
    plan(require(name, ".weight"), name, ".weight", PlannedTensor::Role::vector, 1, dim);
    Norm norm{.gamma = to_device(read_vector(require(name, ".weight"), dim)), .beta = {}, .eps = float(eps)};
    if (has_beta) {
        plan(require(name, ".bias"), name, ".bias", PlannedTensor::Role::vector, 1, dim);
        norm.beta = to_device(read_vector(require(name, ".bias"), dim));
    }
    Module& module = add_module(name, Module::Kind::norm, dim, dim);
    norm.module = int(modules_.size()) - 1;
    return module.norm = norm;
}

void Loader::finish(Model& model) {
    for (const std::string& name : checkpoint_.names()) {
        const auto ignored = [&](const std::string& pattern) { return matches_pattern(pattern, name); };
        if (read_.contains(name) || std::any_of(ignored_.begin(), ignored_.end(), ignored)) continue;
        fail(ErrorCode::unsupported, checkpoint_.path().string(), ": nothing in the architecture '",
             model.info_.architecture, "' uses the tensor '", name, "'; running without it might change the result");
    }
    config().finish();
    for (const auto& layer : options_.layers) {
        const auto named = [&](const Module& module) {
            return module.kind == Module::Kind::linear && module.name == layer.first;
        };
        if (std::any_of(modules_.begin(), modules_.end(), named)) continue;
        fail(ErrorCode::invalid_argument, checkpoint_.path().string(), ": quantize names '", layer.first,
             "', and no linear layer of the model has that name; quantize takes names as in Hugging Face files");
    }
    if (options_.progress) options_.progress(1.0);
    model.info_.tied_output = tied_output_;
    model.unused_ = std::move(ignored_);
    model.modules_ = std::move(modules_);
    model.weights_ = std::move(weights_);
}

std::unique_ptr<Model> load_model(const Checkpoint& checkpoint, Device& device, const LoadOptions& options) {
    const Config& config = checkpoint.config();
    std::string known;
    for (const Architecture* architecture : architectures()) {
        Loader loader(checkpoint, device, options);
        const auto names = config.is_gguf()                ? std::span(&architecture->name, 1)
                           : config.architecture().empty() ? architecture->model_types
                                                           : architecture->hf_names;
        const std::string& wanted =
            !config.is_gguf() && config.architecture().empty() ? config.model_type() : config.architecture();
        if (std::find(names.begin(), names.end(), wanted) != names.end()) return architecture->load(loader);
        for (const std::string_view name : names) known.append(known.empty() ? "" : ", ").append(name);
    }
    fail(ErrorCode::unsupported, config.where(), ": the architecture '",
         config.architecture().empty() ? config.model_type() : config.architecture(),
         "' is not one that this build runs; it runs ", known);
}

}  // namespace halfbyte
