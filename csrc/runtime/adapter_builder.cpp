#include "runtime/adapter_builder.h"

#include <algorithm>

#include "core/error.h"
#include "io/tensors.h"
#include "runtime/dora.h"
#include "storage/encode.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

std::vector<float> decoded(const Weight& weight) {
    std::vector<float> values(static_cast<size_t>(weight.size()));
    decode(weight, values.data());
    return values;
}

std::vector<float> on_host(Device& device, const Buffer& buffer) {
    std::vector<float> values(buffer.bytes / sizeof(float));
    device.copy_to_host(values.data(), buffer.data, buffer.bytes);
    return values;
}

constexpr int kMostLayers = 4096;  // that a replication may make

void check_dtype(const std::string& where, const SafetensorsEntry& entry) {
    if (entry.dtype == DType::f32 || entry.dtype == DType::f16 || entry.dtype == DType::bf16) return;
    fail(ErrorCode::unsupported, where, " has dtype ", name_of(entry.dtype), "; expected float32, float16 or bfloat16");
}

bool is_missing_head(const Module& module) { return module.kind == Module::Kind::linear && module.out_features == 0; }

}  // namespace

AdapterBuilder::AdapterBuilder(std::string name, std::string kind, std::string where, const Model& model, Device& device)
    : where_(std::move(where)), model_(model), device_(device), adapter_(std::make_shared<Adapter>(std::move(name))) {
    adapter_->kind_ = std::move(kind);
    for (size_t i = 0; i < model.modules().size(); i++) {
        index_.emplace(model.modules()[i].base_name, int(i));
        index_.emplace(model.modules()[i].name, int(i));
    }
    // A head that the model lacks goes by either name: the reference has GPT-2 with a "score" and with a "classifier".
    for (size_t i = 0; i < model.modules().size(); i++) {
        if (!is_missing_head(model.modules()[i])) continue;
        index_.emplace("score", int(i));
        index_.emplace("classifier", int(i));
    }
}

// --- tensors ------------------------------------------------------------------------------------------------------

Weight AdapterBuilder::matrix(const std::string& where, const SafetensorsEntry& entry, int64_t rows, int64_t cols,
                              const char* meaning) const {
    check_dtype(where, entry);
    if (entry.shape.size() != 2 || entry.shape[0] != rows || entry.shape[1] != cols)
        fail(ErrorCode::corrupt, where, " has shape ", shape_text(entry.shape), ", expected [", rows, ", ", cols, "] (",
             meaning, "); the adapter was trained on another model");
    return float_weight(entry, where);
}

std::vector<float> AdapterBuilder::vector(const std::string& where, const SafetensorsEntry& entry, int64_t size) const {
    check_dtype(where, entry);
    const Weight weight = float_weight(entry, where);
    if (weight.size() != size)
        fail(ErrorCode::corrupt, where, " has shape ", shape_text(entry.shape), ", expected ", size,
             " values; the adapter was trained on another model");
    return decoded(weight);
}

Buffer AdapterBuilder::to_device(std::span<const float> values) const {
    Buffer buffer = device_.allocate(values.size_bytes());
    device_.copy_to_device(buffer.data, values.data(), values.size_bytes());
    return buffer;
}

LoraFactors AdapterBuilder::lora(const std::string& where, const SafetensorsEntry& a, const SafetensorsEntry& b, int64_t in,
                                 int64_t out, float scale, std::string_view name_of_a) const {
    const int64_t rank = a.shape.empty() ? 0 : a.shape[0];
    if (rank <= 0)
        fail(ErrorCode::corrupt, where, ": ", name_of_a, " has shape ", shape_text(a.shape), ", expected [r, in]");
    (void)matrix(concat(where, " ", name_of_a), a, rank, in, "[r, in]");
    (void)matrix(concat(where, " lora_B"), b, out, rank, "[out, r]");
    return device_.upload_lora({.a = a.bytes.data,
                                .b = b.bytes.data,
                                .a_dtype = a.dtype,
                                .b_dtype = b.dtype,
                                .rank = rank,
                                .in = in,
                                .out = out,
                                .scale = scale});
}

// --- modules ------------------------------------------------------------------------------------------------------

const Module* AdapterBuilder::find(const std::string& name, int64_t& pass) const {
    pass = -1;
    std::string of = name;
    if (const std::vector<int32_t>& layers = adapter_->layers_; !layers.empty()) {
        // "model.layers.5.self_attn.q_proj" is the sixth layer that runs: the number between dots.
        for (size_t dot = name.find('.'); dot != std::string::npos && pass < 0; dot = name.find('.', dot + 1)) {
            const size_t end = name.find_first_not_of("0123456789", dot + 1);
            if (end == dot + 1 || end == std::string::npos || name[end] != '.' || end - dot > 9) continue;
            pass = std::stoll(name.substr(dot + 1, end - dot - 1));
            if (pass >= int64_t(layers.size())) return nullptr;
            of = concat(name.substr(0, dot + 1), layers[size_t(pass)], name.substr(end));
        }
    }
    const auto found = index_.find(of);
    return found == index_.end() ? nullptr : &model_.modules()[size_t(found->second)];
}

void AdapterBuilder::set_layers(std::span<const std::pair<int64_t, int64_t>> ranges) {
    const int64_t layers = model_.info().layers;
    for (const auto& [first, last] : ranges) {
        if (first < 0 || last > layers || first >= last)
            fail(ErrorCode::corrupt, where_, ": layer_replication has the range [", first, ", ", last, "], and the model ",
                 layers, " layers");
        for (int64_t layer = first; layer < last; layer++) adapter_->layers_.push_back(int32_t(layer));
        if (adapter_->layers_.size() > size_t(kMostLayers))
            fail(ErrorCode::corrupt, where_, ": layer_replication makes more than ", kMostLayers, " layers");
    }
}

bool AdapterBuilder::has(std::string_view module) const {
    return std::any_of(model_.modules().begin(), model_.modules().end(), [&](const Module& m) {
        const bool is_head = m.kind == Module::Kind::linear && m.out_features == 0;  // a place for one
        return !is_head && (m.name == module || m.name.ends_with(concat(".", module)));
    });
}

void AdapterBuilder::add(const std::string& name, const ModuleTensors& t, float scale, std::span<const int32_t> tokens) {
    const std::string where = concat(where_, ": '", name, "'");
    if (t.a.has_value() != t.b.has_value())
        fail(ErrorCode::corrupt, where, " has lora_", t.a ? "A but no lora_B" : "B but no lora_A",
             "; the file is incomplete");
    if (t.embedding_a.has_value() != t.embedding_b.has_value())
        fail(ErrorCode::corrupt, where, " has lora_embedding_", t.embedding_a ? "A but no B" : "B but no A",
             "; the file is incomplete");
    int64_t pass = -1;
    const Module* module = find(name, pass);
    if (module == nullptr) {
        if (model_.unused(name + ".weight")) return;
        fail(ErrorCode::unsupported, where, " is not a module of this ", model_.info().architecture,
             " model; the adapter was trained on another model, or on a part that halfbyte does not adapt yet");
    }
    if (pass >= 0 && module->kind == Module::Kind::norm)  // BERT's layers run the norm of the layer before them
        fail(ErrorCode::unsupported, where,
             " is a norm of a layer that layer_replication repeats; halfbyte does not adapt it");
    const int index = int(module - model_.modules().data());
    const auto [place, is_new] = adapter_->modules_.try_emplace({pass, index});
    if (!is_new) fail(ErrorCode::corrupt, where, " is adapted twice, under two names of the same layer");
    switch (module->kind) {
        case Module::Kind::linear:
            add_linear(where, *module, t, scale, place->second);
            if (t.token_rows) add_token_outputs(where, *module, *t.token_rows, tokens, place->second);
            return;
        case Module::Kind::embedding: return add_embedding(where, *module, t, scale, tokens, place->second);
        case Module::Kind::norm: return add_norm(where, *module, t, place->second);
    }
}

void AdapterBuilder::add_linear(const std::string& where, const Module& module, const ModuleTensors& t, float scale,
                                ModuleAdapter& out) {
    if (t.embedding_a) fail(ErrorCode::unsupported, where, " is a linear layer, and lora_embedding_A is for a table");
    const int64_t in = module.in_features;
    int64_t features = module.out_features;
    Weight base;  // as an effect of which DoRA's lengths are
    const bool is_head = is_missing_head(module) || module.name == "score" || module.name == "classifier";
    if (t.weight) {
        check_dtype(where, *t.weight);
        const std::vector<int64_t>& shape = t.weight->shape;
        const bool turned = module.conv1d;
        const int64_t found = shape.size() == 2 ? shape[turned ? 1 : 0] : 0;
        // A vocabulary and the labels of a head may have been resized; nothing else may.
        const int64_t expected = (module.is_output || is_head) && found > 0 ? found : features;
        base = turned ? matrix(where, *t.weight, in, expected, "[in, out]")
                      : matrix(where, *t.weight, expected, in, "[out, in]");
        if (turned) base = transposed(base, device_.host_pool());
        features = expected;
        out.replaced = std::make_unique<Linear>();
        out.replaced->weight = device_.upload(base, module.is_output || is_head ? WeightUse::few_rows : WeightUse::any_rows);
        out.replaced->in_features = in, out.replaced->out_features = features;
        if (t.bias)
            out.replaced->bias = to_device(vector(where + " bias", *t.bias, features));
        else if (features == module.out_features)
            out.replaced->bias = module.linear.bias;
        if (module.is_output) adapter_->output_size_ = features;
        if (is_head) adapter_->labels_ = features;
    } else if (features == 0) {
        fail(ErrorCode::unsupported, where, " has no weight in this model, and the adapter brings none");
    }
    const std::vector<float> bias = on_host(device_, module.linear.bias);
    std::vector<float> shift;
    if (t.bias && !t.weight) {
        shift = vector(where + " bias", *t.bias, features);
        for (size_t i = 0; i < bias.size(); i++) shift[i] -= bias[i];
    }
    if (t.a) out.linear.lora = lora(where, *t.a, *t.b, in, features, scale, "lora_A");
    if (t.magnitude) {
        if (!t.a) fail(ErrorCode::corrupt, where, " has a lora_magnitude_vector, but no lora_A and lora_B");
        std::vector<float> gain = vector(where + " lora_magnitude_vector", *t.magnitude, features);
        if (!t.weight) base = device_.readable(module.linear.weight);
        const std::vector<float> a = decoded(float_weight(*t.a, where)), b = decoded(float_weight(*t.b, where));
        const std::vector<float> lengths = row_lengths(base, a, b, t.a->shape[0], scale, device_.host_pool());
        for (size_t i = 0; i < gain.size(); i++) gain[i] /= lengths[i];
        out.linear.gain = to_device(gain), out.linear.gain_of_bias = false;
    }
    if (t.b_bias) {
        if (!t.a || t.magnitude) fail(ErrorCode::corrupt, where, t.a ? ": DoRA knows no bias of lora_B" : " has no lora_B");
        const std::vector<float> b_bias = vector(where + " lora_B.bias", *t.b_bias, features);
        shift.resize(size_t(features));
        for (size_t i = 0; i < b_bias.size(); i++) shift[i] += scale * b_bias[i];
    }
    if (!shift.empty()) out.linear.shift = to_device(shift);
    if (t.ia3) {
        const bool reads = t.ia3->shape.size() == 2 && t.ia3->shape[0] == 1 && t.ia3->shape[1] != 1;
        const std::vector<float> gain = vector(where + " ia3_l", *t.ia3, reads ? in : features);
        (reads ? out.input_gain : out.linear.gain) = to_device(gain);
    }
}

void AdapterBuilder::add_embedding(const std::string& where, const Module& module, const ModuleTensors& t, float scale,
                                   std::span<const int32_t> tokens, ModuleAdapter& out) {
    if (t.a || t.b_bias || t.ia3 || t.bias)
        fail(ErrorCode::unsupported, where,
             " is a table of embeddings, and the adapter has tensors of a linear layer for it");
    const int64_t dim = module.in_features;
    int64_t count = module.out_features;
    Weight base;
    if (t.weight) {
        const int64_t found = t.weight->shape.size() == 2 ? t.weight->shape[0] : 0;
        if (module.is_input && found > 0) count = found;
        base = matrix(where, *t.weight, count, dim, "[tokens, dim]");
        out.table = std::make_unique<Embedding>();
        out.table->table = device_.upload_table(base), out.table->count = count, out.table->dim = dim;
        if (module.is_input) adapter_->vocab_size_ = count, input_table_ = t.weight, input_table_is_base_ = t.weight_is_base;
    }
    if (t.embedding_a) {
        const int64_t rank = t.embedding_a->shape.empty() ? 0 : t.embedding_a->shape[0];
        if (rank <= 0)
            fail(ErrorCode::corrupt, where, ": lora_embedding_A has shape ", shape_text(t.embedding_a->shape),
                 ", expected [r, tokens]");
        const Weight a =
            transposed(matrix(where + " lora_embedding_A", *t.embedding_a, rank, count, "[r, tokens]"), device_.host_pool());
        const Weight b = matrix(where + " lora_embedding_B", *t.embedding_b, dim, rank, "[dim, r]");
        out.lookup = std::make_unique<Embedding>();
        out.lookup->table = device_.upload_table(a), out.lookup->count = count, out.lookup->dim = rank;
        std::vector<float> identity(size_t(rank * rank));
        for (int64_t i = 0; i < rank; i++) identity[size_t(i * rank + i)] = 1;
        out.linear.lora = device_.upload_lora({.a = identity.data(),
                                               .b = t.embedding_b->bytes.data,
                                               .a_dtype = DType::f32,
                                               .b_dtype = t.embedding_b->dtype,
                                               .rank = rank,
                                               .in = rank,
                                               .out = dim,
                                               .scale = scale});
        if (t.magnitude) {
            std::vector<float> gain = vector(where + " lora_magnitude_vector", *t.magnitude, dim);
            if (!t.weight) base = module.table.table;
            const std::vector<float> turned_b = decoded(transposed(b, device_.host_pool()));
            const std::vector<float> lengths = column_lengths(base, decoded(a), turned_b, rank, scale, device_.host_pool());
            for (size_t i = 0; i < gain.size(); i++) gain[i] /= lengths[i];
            out.linear.gain = to_device(gain);
        }
    } else if (t.magnitude) {
        fail(ErrorCode::corrupt, where, " has a lora_magnitude_vector, but no lora_embedding_A and B");
    }
    if (!t.token_rows) return;
    const Weight rows =
        matrix(where + " trainable_tokens_delta", *t.token_rows, int64_t(tokens.size()), dim, "[trained tokens, dim]");
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] < 0 || tokens[i] >= count)
            fail(ErrorCode::corrupt, where, ": token ", tokens[i], " was trained, and there are ", count);
        out.row_of.emplace_back(tokens[i], int32_t(i));
    }
    std::sort(out.row_of.begin(), out.row_of.end());
    out.rows = std::make_unique<Embedding>();
    out.rows->table = device_.upload_table(rows), out.rows->count = rows.rows, out.rows->dim = dim;
    if (module.is_input) input_rows_ = *t.token_rows, input_tokens_.assign(tokens.begin(), tokens.end());
}

void AdapterBuilder::add_token_outputs(const std::string& where, const Module& module, const SafetensorsEntry& rows,
                                       std::span<const int32_t> tokens, ModuleAdapter& out) {
    const int64_t count = out.replaced ? out.replaced->out_features : module.out_features;
    for (const int32_t token : tokens)
        if (token < 0 || token >= count)
            fail(ErrorCode::corrupt, where, ": token ", token, " was trained, and there are ", count);
    const Weight weight =
        matrix(where + " trainable_tokens_delta", rows, int64_t(tokens.size()), module.in_features, "[trained tokens, in]");
    out.columns.assign(tokens.begin(), tokens.end());
    out.row_outputs = std::make_unique<Linear>();
    out.row_outputs->weight = device_.upload(weight, WeightUse::few_rows);
    out.row_outputs->in_features = module.in_features, out.row_outputs->out_features = weight.rows;
}

void AdapterBuilder::add_norm(const std::string& where, const Module& module, const ModuleTensors& t, ModuleAdapter& out) {
    if (t.a || t.embedding_a || t.ia3 || t.token_rows)
        fail(ErrorCode::unsupported, where, " is a norm, and the adapter has tensors of another kind of layer for it");
    out.norm = std::make_unique<Norm>(module.norm);
    if (t.weight) out.norm->gamma = to_device(vector(where + " weight", *t.weight, module.in_features));
    if (!t.bias) return;
    if (module.norm.beta.data == nullptr)
        fail(ErrorCode::unsupported, where, " is a norm without a bias, and the adapter has one for it");
    out.norm->beta = to_device(vector(where + " bias", *t.bias, module.in_features));
}

void AdapterBuilder::tie_output() {
    if (!model_.info().tied_output) return;
    const bool resized = input_table_ && input_table_->shape[0] != model_.info().vocab_size;
    for (size_t i = 0; i < model_.modules().size(); i++) {
        const Module& module = model_.modules()[i];
        if (!module.is_output) continue;
        const std::string where = concat(where_, ": '", module.name, "'");
        const auto found = adapter_->modules_.find({-1, int(i)});
        const bool has_own = found != adapter_->modules_.end() && found->second.replaced;
        if (resized && !has_own) {
            if (!input_table_is_base_ || found != adapter_->modules_.end())
                fail(ErrorCode::unsupported, where, " shares the table of the embedding, which was resized to ",
                     input_table_->shape[0],
                     " tokens, and its own rows for them are not in the file; save it with "
                     "save_embedding_layers=True or name it in modules_to_save");
            ModuleTensors table;
            table.weight = input_table_;
            add(module.name, table, 1, {});
        }
        if (!input_rows_) continue;
        ModuleAdapter& out = adapter_->modules_[{-1, int(i)}];
        if (out.columns.empty()) add_token_outputs(where, module, *input_rows_, input_tokens_, out);
    }
}

// --- what stands in front of the tokens ---------------------------------------------------------------------------

void AdapterBuilder::set_prompt(const SafetensorsEntry& rows, int64_t tokens) {
    const Weight weight =
        matrix(where_ + ": 'prompt_embeddings'", rows, tokens, model_.info().hidden_size, "[virtual tokens, hidden size]");
    adapter_->prompt_ = std::make_unique<Embedding>();
    adapter_->prompt_->table = device_.upload_table(weight);
    adapter_->prompt_->count = tokens, adapter_->prompt_->dim = weight.cols;
}

void AdapterBuilder::set_prefix(const SafetensorsEntry& rows, int64_t tokens) {
    const ModelInfo& info = model_.info();
    const int64_t width = info.kv_heads * info.head_dim, cols = info.layers * 2 * width;
    const std::vector<float> values = decoded(matrix(where_ + ": 'prompt_embeddings'", rows, tokens, cols,
                                                     "[virtual tokens, layers * 2 * heads of keys * their size]"));
    // A row holds the keys, then the values of the first layer, then those of the next (PeftModel.get_prompt).
    const auto part = [&](int64_t at) {
        std::vector<float> out;
        for (int64_t t = 0; t < tokens; t++) {
            const auto first = values.begin() + t * cols + at * width;
            out.insert(out.end(), first, first + width);
        }
        return to_device(out);
    };
    adapter_->prefix_.tokens = tokens;
    for (int64_t layer = 0; layer < info.layers; layer++)
        adapter_->prefix_.layers.emplace_back(part(2 * layer), part(2 * layer + 1));
}

std::shared_ptr<const Adapter> AdapterBuilder::finish() { return std::move(adapter_); }

}  // namespace halfbyte
