#include "runtime/gguf_adapter.h"

#include <cmath>
#include <cstring>
#include <map>

#include "core/error.h"
#include "core/utf8.h"
#include "io/ggml_types.h"
#include "runtime/adapter_builder.h"
#include "runtime/peft.h"

namespace halfbyte {

namespace {

std::string text_of(const GgufFile& file, std::string_view key) {
    const GgufValue* value = file.find(key);
    if (value == nullptr) fail(ErrorCode::corrupt, file.where(), ": ", key, " is missing; an adapter file needs it");
    if (value->type != GgufType::string || first_invalid_utf8(value->text()) != std::string_view::npos)
        fail(ErrorCode::corrupt, file.where(), ": ", key, " must be a text");
    return std::string(value->text());
}

float alpha_of(const GgufFile& file) {
    constexpr std::string_view kKey = "adapter.lora.alpha";
    const GgufValue* value = file.find(kKey);
    float alpha = 0;
    if (value != nullptr && value->type == GgufType::f32) std::memcpy(&alpha, value->data, sizeof alpha);
    if (value == nullptr || value->type != GgufType::f32 || !std::isfinite(alpha))
        fail(ErrorCode::corrupt, file.where(), ": ", kKey, " must be a finite float32");
    return alpha;
}

/// Tokens that activate the adapter; llama.cpp writes them for an aLoRA.
std::vector<int32_t> invocation_of(const GgufFile& file) {
    constexpr std::string_view kKey = "adapter.alora.invocation_tokens";
    const GgufValue* value = file.find(kKey);
    std::vector<int32_t> tokens;
    if (value == nullptr) return tokens;
    const bool good = value->type == GgufType::array && (value->element == GgufType::u32 || value->element == GgufType::i32);
    if (!good) fail(ErrorCode::corrupt, file.where(), ": ", kKey, " must be a list of tokens");
    tokens.resize(size_t(value->count));
    std::memcpy(tokens.data(), value->data, tokens.size() * sizeof(int32_t));
    for (const int32_t token : tokens)
        if (token < 0) fail(ErrorCode::corrupt, file.where(), ": ", kKey, " holds ", token, ", which is no token");
    return tokens;
}

/// A float tensor as if it came from a safetensors file.
SafetensorsEntry entry_of(const GgufFile& file, const std::string& name, const GgufTensor& tensor) {
    const GgmlType& type = *find_ggml_type(tensor.type);
    DType dtype = DType::f32;
    if (type.name == "F16")
        dtype = DType::f16;
    else if (type.name == "BF16")
        dtype = DType::bf16;
    else if (type.name != "F32")
        fail(ErrorCode::unsupported, file.where(), ": tensor ", name, " is ", type.name,
             "; halfbyte reads adapters of F32, F16 and BF16");
    return {dtype, tensor.shape, tensor.bytes};
}

/// Row i of the result is row order[i] of the entry.
SafetensorsEntry reordered(const SafetensorsEntry& entry, const std::vector<int64_t>& order, const std::string& where) {
    if (entry.shape.size() != 2 || entry.shape[0] != int64_t(order.size()))
        fail(ErrorCode::corrupt, where, " has ", entry.shape.empty() ? 0 : entry.shape[0], " rows, expected ", order.size(),
             "; the adapter was trained on another model");
    SafetensorsEntry out = entry;
    out.bytes = allocate_plane(entry.bytes.bytes);
    const size_t row = entry.bytes.bytes / std::max<size_t>(order.size(), 1);
    auto* to = static_cast<char*>(const_cast<void*>(out.bytes.data));
    for (const int64_t from : order) {
        std::memcpy(to, entry.bytes.as<char>() + size_t(from) * row, row);
        to += row;
    }
    return out;
}

std::shared_ptr<const Adapter> bind_lora(const GgufFile& file, std::string name, const Model& model, Device& device) {
    constexpr std::string_view kA = ".weight.lora_a", kB = ".weight.lora_b";
    const std::string& where = file.where();
    const float alpha = alpha_of(file);
    std::map<std::string_view, const Module*> by_name;
    for (const Module& module : model.modules())
        if (!module.gguf_name.empty()) by_name.emplace(module.gguf_name, &module);
    std::map<std::string, ModuleTensors> modules;
    for (const auto& [tensor, data] : file.tensors()) {
        const bool is_a = tensor.ends_with(kA);
        if (!is_a && !tensor.ends_with(kB))
            fail(ErrorCode::unsupported, where, ": the tensor '", tensor,
                 "' is not the A or B of a layer; halfbyte does not apply it, and without it the adapter would give other "
                 "answers");
        const auto found = by_name.find(std::string_view(tensor).substr(0, tensor.size() - kA.size()));
        if (found == by_name.end())
            fail(ErrorCode::unsupported, where, ": the tensor '", tensor, "' belongs to no layer of this ",
                 model.info().architecture, " model");
        const Module& module = *found->second;
        SafetensorsEntry entry = entry_of(file, tensor, data);
        // B makes the rows of the layer, which llama.cpp keeps as rotary pairs in some.
        if (!is_a && !module.gguf_rows.empty()) entry = reordered(entry, module.gguf_rows, concat(where, ": ", tensor));
        ModuleTensors& tensors = modules[module.name];
        (is_a ? tensors.a : tensors.b) = std::move(entry);
    }
    if (modules.empty()) fail(ErrorCode::corrupt, where, ": there are no tensors in it");
    AdapterBuilder builder(std::move(name), "LORA", where, model, device);
    for (const auto& [module, tensors] : modules) {
        // llama.cpp divides by the columns of B (llama_adapter_lora_weight::get_scale).
        const int64_t rank = tensors.b && tensors.b->shape.size() == 2 ? tensors.b->shape[1] : 1;
        builder.add(module, tensors, alpha / float(std::max<int64_t>(rank, 1)), {});
    }
    builder.set_invocation(invocation_of(file));
    return builder.finish();
}

}  // namespace

std::shared_ptr<const Adapter> read_gguf_adapter(const std::filesystem::path& path, std::string name, const Model& model,
                                                 Device& device) {
    return bind_gguf_adapter(GgufFile::open(path), std::move(name), model, device);
}

std::shared_ptr<const Adapter> bind_gguf_adapter(const GgufFile& file, std::string name, const Model& model,
                                                 Device& device) {
    const std::string kind = text_of(file, "general.type");
    if (kind != "adapter")
        fail(ErrorCode::unsupported, file.where(), ": general.type is \"", kind, "\", expected \"adapter\"");
    const std::string type = text_of(file, "adapter.type");
    if (type == "lora") {
        const std::string architecture = text_of(file, "general.architecture");
        if (architecture != model.info().architecture)
            fail(ErrorCode::unsupported, file.where(), ": the adapter is for the architecture '", architecture,
                 "', the model is '", model.info().architecture, "'");
        return bind_lora(file, std::move(name), model, device);
    }
    if (type != "peft")
        fail(ErrorCode::unsupported, file.where(), ": adapter.type is \"", type, R"(", expected "lora" or "peft")");
    const PeftConfig config(text_of(file, "halfbyte.adapter_config"), file.where() + ": halfbyte.adapter_config");
    std::map<std::string, SafetensorsEntry, std::less<>> tensors;
    for (const auto& [tensor, data] : file.tensors()) tensors.emplace(tensor, entry_of(file, tensor, data));
    return bind_peft_adapter(config, std::move(tensors), file.where(), std::move(name), model, device);
}

}  // namespace halfbyte
