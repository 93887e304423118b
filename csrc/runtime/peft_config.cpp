#include "runtime/peft_config.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "core/error.h"
#include "io/json.h"

namespace halfbyte {

namespace {

using nlohmann::json;

/// The value as text for an error, short.
std::string shown(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
}

bool is_off(const json& value) {
    return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           ((value.is_array() || value.is_object() || value.is_string()) && value.empty());
}

struct KindName {
    std::string_view type;
    PeftKind kind;
};
constexpr KindName kKinds[] = {{"LORA", PeftKind::lora},
                               {"IA3", PeftKind::ia3},
                               {"LN_TUNING", PeftKind::ln_tuning},
                               {"TRAINABLE_TOKENS", PeftKind::trainable_tokens},
                               {"PROMPT_TUNING", PeftKind::prompt},
                               {"P_TUNING", PeftKind::prompt},
                               {"PREFIX_TUNING", PeftKind::prefix}};

// Fields of the kinds other than LoRA that say how to train, or that the names, shapes and values of the tensors already say.
constexpr std::string_view kNoEffect[] = {
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping",
    "target_modules", "exclude_modules", "modules_to_save", "ensure_weight_tying",
    // IA3Config
    "feedforward_modules", "fan_in_fan_out", "init_ia3_weights",
    // TrainableTokensConfig
    "token_indices", "init_weights",
    // prompt learning: sizes are checked against the tensor, the encoder has been run when the adapter was saved
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "encoder_hidden_size",
    "encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout", "prefix_projection", "init_from_kv"};

}  // namespace

PeftConfig::PeftConfig(std::string_view text, std::string where) {
    const json config = parse_json(text, where);
    if (!config.is_object()) fail(ErrorCode::corrupt, where, ": expected a JSON object, found ", config.type_name());
    const auto field = [&](const char* name) { return config.value(name, json()); };
    const json name = field("peft_type");
    const auto* known = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const KindName& each) {
        return name.is_string() && name.get_ref<const std::string&>() == each.type;
    });
    if (known == std::end(kKinds)) {
        std::string names;
        for (const KindName& each : kKinds) names += (names.empty() ? "" : ", ") + std::string(each.type);
        fail(ErrorCode::unsupported, where, ": peft_type is ", shown(name), "; halfbyte applies ", names);
    }
    kind = known->kind, type = known->type;

    const auto count = [&](const json& value, std::string_view what, int64_t least) {
        if (!value.is_number_integer() || value.get<double>() < double(least) ||
            value.get<double>() > double(std::numeric_limits<int32_t>::max()))
            fail(ErrorCode::corrupt, where, ": '", what, "' must be a whole number from ", least, " on, found ",
                 shown(value));
        return value.get<int32_t>();
    };
    const auto tokens = [&](const json& list, std::string_view what) {
        if (!list.is_array())
            fail(ErrorCode::corrupt, where, ": '", what, "' must be a list of tokens, found ", shown(list));
        std::vector<int32_t> ids;
        for (const json& id : list) ids.push_back(count(id, what, 0));
        return ids;
    };
    if (const json modules = field("modules_to_save"); !modules.is_null()) {
        if (!modules.is_array())
            fail(ErrorCode::corrupt, where, ": 'modules_to_save' must be a list, found ", shown(modules));
        for (const json& module : modules) {
            if (!module.is_string())
                fail(ErrorCode::corrupt, where, ": 'modules_to_save' must hold names, found ", shown(module));
            modules_to_save.push_back(module.get<std::string>());
        }
    }
    if (const json ranges = field("layer_replication"); !is_off(ranges)) {
        if (!ranges.is_array())
            fail(ErrorCode::corrupt, where, ": 'layer_replication' must be a list of ranges, found ", shown(ranges));
        for (const json& range : ranges) {
            if (!range.is_array() || range.size() != 2)
                fail(ErrorCode::corrupt, where, ": 'layer_replication' must be a list of ranges [first, last], found ",
                     shown(range));
            layer_ranges.emplace_back(count(range[0], "layer_replication", 0), count(range[1], "layer_replication", 0));
        }
    }
    tied_weights = !is_off(field("ensure_weight_tying"));
    const char* indices = kind == PeftKind::trainable_tokens ? "token_indices" : "trainable_token_indices";
    if (const json list = field(indices); list.is_object()) {
        for (const auto& [module, ids] : list.items()) tokens_.emplace_back(module, tokens(ids, indices));
    } else if (!list.is_null()) {
        tokens_.emplace_back("", tokens(list, indices));
    }

    if (kind == PeftKind::lora) {
        lora.emplace(text, std::move(where));
        return;
    }
    for (const auto& [key, value] : config.items()) {
        if (std::find(std::begin(kNoEffect), std::end(kNoEffect), key) != std::end(kNoEffect) || is_off(value)) continue;
        fail(ErrorCode::unsupported, where, ": the field '", key, "' is ", shown(value),
             "; halfbyte does not apply it yet, and without it the adapter would give other answers");
    }
    if (kind != PeftKind::prompt && kind != PeftKind::prefix) return;
    virtual_tokens = count(field("num_virtual_tokens"), "num_virtual_tokens", 1);
    if (const json parts = field("num_transformer_submodules"); !parts.is_null() && parts != 1)
        fail(ErrorCode::unsupported, where, ": num_transformer_submodules is ", shown(parts),
             "; halfbyte applies prompts to models of one stack");
}

std::vector<int32_t> PeftConfig::token_indices(std::string_view module) const {
    for (const auto& [name, ids] : tokens_)
        if (name.empty() || name == module || module.ends_with("." + name)) return ids;
    return {};
}

}  // namespace halfbyte
