#include "runtime/peft.h"

#include <cstring>
#include <iterator>
#include <map>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "runtime/adapter_builder.h"

namespace halfbyte {

namespace {

using Entry = std::optional<SafetensorsEntry>;

/// What the end of a tensor's name says about it. The first that fits counts.
struct Suffix {
    std::string_view text;
    Entry ModuleTensors::* member;
    PeftKind kind;     // of the adapters that have it; others must not
    bool any = false;  // all kinds may have it
};
constexpr Suffix kSuffixes[] = {
    {".lora_A.weight", &ModuleTensors::a, PeftKind::lora},
    {".lora_B.weight", &ModuleTensors::b, PeftKind::lora},
    {".lora_B.bias", &ModuleTensors::b_bias, PeftKind::lora},
    {".lora_embedding_A", &ModuleTensors::embedding_a, PeftKind::lora},
    {".lora_embedding_B", &ModuleTensors::embedding_b, PeftKind::lora},
    {".lora_magnitude_vector", &ModuleTensors::magnitude, PeftKind::lora},
    {".lora_magnitude_vector.weight", &ModuleTensors::magnitude, PeftKind::lora},
    {".ia3_l", &ModuleTensors::ia3, PeftKind::ia3},
    {".token_adapter.trainable_tokens_delta", &ModuleTensors::token_rows, PeftKind::lora},
    {".trainable_tokens_delta", &ModuleTensors::token_rows, PeftKind::trainable_tokens},
    {".ln_tuning_layers.weight", &ModuleTensors::weight, PeftKind::ln_tuning},
    {".ln_tuning_layers.bias", &ModuleTensors::bias, PeftKind::ln_tuning},
    {".token_adapter.base_layer.weight", &ModuleTensors::weight, PeftKind::lora, true},
    {".base_layer.weight", &ModuleTensors::weight, PeftKind::lora, true},
    {".base_layer.bias", &ModuleTensors::bias, PeftKind::lora, true},
    {".modules_to_save.weight", &ModuleTensors::weight, PeftKind::lora, true},
    {".modules_to_save.bias", &ModuleTensors::bias, PeftKind::lora, true},
    {".weight", &ModuleTensors::weight, PeftKind::lora, true},
    {".bias", &ModuleTensors::bias, PeftKind::lora, true},
};

const Suffix* suffix_of(std::string_view name, PeftKind kind) {
    for (const Suffix& suffix : kSuffixes)
        if (name.ends_with(suffix.text) && name.size() > suffix.text.size())
            return suffix.any || suffix.kind == kind ? &suffix : nullptr;
    return nullptr;
}

bool same_bytes(const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.bytes.data, b.bytes.data, a.bytes.bytes) == 0;
}

bool is_prompt(PeftKind kind) { return kind == PeftKind::prompt || kind == PeftKind::prefix; }

[[noreturn]] void fail_tensor(const std::string& where, std::string_view tensor, std::string_view type) {
    fail(ErrorCode::unsupported, where, ": the tensor '", tensor, "' is none that an adapter of the kind ", type,
         " has; halfbyte does not apply it, and without it the adapter would give other answers");
}

/// Fields of a LoRA's config that must agree with its tensors.
void check_lora(const LoraConfig& config, const std::string& where, const ModuleTensors& t) {
    if (t.magnitude.has_value() != config.dora() && (t.a || t.embedding_a))
        fail(ErrorCode::corrupt, where,
             config.dora() ? " has no lora_magnitude_vector, and use_dora is true"
                           : " has a lora_magnitude_vector, and use_dora is not true");
    if (t.a && t.b_bias.has_value() != config.lora_bias())
        fail(ErrorCode::corrupt, where,
             config.lora_bias() ? ": lora_B has no bias, and lora_bias is true"
                                : ": lora_B has a bias, and lora_bias is not true");
    if (t.bias && !t.weight && !config.has_biases())
        fail(ErrorCode::corrupt, where, " has a bias, and the field 'bias' of the config is \"none\"");
}

}  // namespace

std::shared_ptr<const Adapter> read_peft_adapter(const std::filesystem::path& folder, std::string name, const Model& model,
                                                 Device& device) {
    const std::filesystem::path file = folder / "adapter_model.safetensors";
    const std::filesystem::path config_path = folder / "adapter_config.json";
    const PeftConfig config(read_text_file(config_path), config_path.string());
    if (!std::filesystem::exists(file) && std::filesystem::exists(folder / "adapter_model.bin")) {
        fail_pickle(folder / "adapter_model.bin", "adapter_model.safetensors");
    }
    return bind_peft_adapter(config, read_safetensors(file), file.string(), std::move(name), model, device);
}

std::shared_ptr<const Adapter> bind_peft_adapter(const PeftConfig& config,
                                                 std::map<std::string, SafetensorsEntry, std::less<>> tensors,
                                                 const std::string& where, std::string name, const Model& model,
                                                 Device& device) {
    constexpr std::string_view kPromptRows = "prompt_embeddings";
    const bool prompt = is_prompt(config.kind);
    const std::string_view prefix = prompt ? "base_model." : "base_model.model.";
    AdapterBuilder builder(std::move(name), config.type, where, model, device);

    builder.set_layers(config.layer_ranges);
    if (prompt) {
        const auto rows = tensors.find(kPromptRows);
        if (rows == tensors.end()) fail(ErrorCode::corrupt, where, ": there is no tensor '", kPromptRows, "' in it");
        if (config.kind == PeftKind::prompt)
            builder.set_prompt(rows->second, config.virtual_tokens);
        else
            builder.set_prefix(rows->second, config.virtual_tokens);
        tensors.erase(rows);
    }
    if (tensors.empty() && !prompt) fail(ErrorCode::corrupt, where, ": there are no tensors in it");
    std::map<std::string, ModuleTensors, std::less<>> modules;
    for (const auto& [tensor, entry] : tensors) {
        const std::string_view rest = std::string_view(tensor).substr(tensor.starts_with(prefix) ? prefix.size() : 0);
        const Suffix* suffix = suffix_of(rest, config.kind);
        if (suffix == nullptr || rest.size() == tensor.size()) fail_tensor(where, tensor, config.type);
        // save_embedding_layers=True saves a module of modules_to_save a second time, beside what it was before the training.
        if (rest.ends_with(".original_module.weight") || rest.ends_with(".original_module.bias")) continue;
        ModuleTensors& module = modules[std::string(rest.substr(0, rest.size() - suffix->text.size()))];
        Entry& place = module.*suffix->member;
        if (place && !same_bytes(*place, entry))
            fail(ErrorCode::corrupt, where, ": the tensor '", tensor, "' is there twice, under two names, and differs");
        place = entry;
        if (suffix->text.ends_with(".base_layer.weight")) module.weight_is_base = true;
    }
    bool has_tokens = false;
    for (const auto& [module, t] : modules) {
        has_tokens = has_tokens || t.token_rows;
        const std::string of = concat(where, ": '", module, "'");
        float scale = 1;
        if (config.lora) {
            check_lora(*config.lora, of, t);
            const Entry& a = t.a ? t.a : t.embedding_a;
            if (a && a->shape.size() == 2 && a->shape[0] > 0) scale = config.lora->scale(module, a->shape[0]);
        }
        const std::vector<int32_t> tokens = t.token_rows ? config.token_indices(module) : std::vector<int32_t>();
        builder.add(module, t, scale, tokens);
    }
    for (const std::string& module : config.modules_to_save) {
        bool saved = false;
        for (const auto& [name_of, t] : modules)
            saved = saved || (t.weight && (name_of == module || name_of.ends_with("." + module)));
        // The reference names heads ("classifier", "score") that a model may not have.
        if (!saved && builder.has(module))
            fail(ErrorCode::corrupt, where, ": modules_to_save names '", module, "', and there is no tensor for it");
    }
    if (config.has_tokens() && !has_tokens)
        fail(ErrorCode::corrupt, where, ": trainable_token_indices names tokens, and there are no rows for them");
    builder.tie_output();
    if (config.lora) builder.set_invocation(config.lora->invocation_tokens());
    return builder.finish();
}

}  // namespace halfbyte
