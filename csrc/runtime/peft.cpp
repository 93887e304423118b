#include "runtime/peft.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace halfbyte {

namespace {

using Json = nlohmann::ordered_json;  // the order of a pattern's keys decides which one wins

// Fields of LoraConfig that say how to train, or that the names and shapes of the saved tensors already say.
constexpr std::string_view kNoEffect[] = {
    "peft_type",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "fan_in_fan_out",
    "ensure_weight_tying",
    "init_lora_weights",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
};

// A value that switches its field off.
bool is_off(const Json& value) {
    return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
           ((value.is_array() || value.is_object()) && value.empty());
}

// Initialisations that leave the base weights as they are. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) train against a base
// that they have changed, so that the saved A and B mean nothing on the original one.
bool keeps_base(const Json& init) {
    if (init.is_boolean() || init.is_null()) return true;
    return init.is_string() && (init == "gaussian" || init == "eva" || init == "orthogonal");
}

// A pattern comes from a file that somebody else wrote: matching must take neither exponential time nor a deep stack.
constexpr size_t kLongestPattern = 1000;
#ifdef __GLIBCXX__
constexpr auto kGrammar = std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
constexpr auto kGrammar = std::regex::ECMAScript;
#endif

class LoraConfig {
public:
    explicit LoraConfig(const std::filesystem::path& path) : where_(path.string()) {
        const std::string text = read_text_file(path);
        parse_json(text, where_);  // refuses what ordered_json would let pass: duplicate keys, deep nesting
        fields_ = Json::parse(text);
        if (!fields_.is_object()) fail(ErrorCode::corrupt, where_, ": expected a JSON object, found ", fields_.type_name());
        check();
    }

    // alpha / r or alpha / sqrt(r), as LoraLayer.update_layer computes it. `module` as it is named in the adapter.
    float scale(const std::string& module, int64_t rank) const {
        const double r = by_pattern("rank_pattern", "r", module), alpha = by_pattern("alpha_pattern", "lora_alpha", module);
        if (r != double(rank)) {
            fail(ErrorCode::corrupt, where_, ": rank ", r, " is configured for '", module, "', but its tensors have rank ",
                 rank, "; the file and its config do not belong together");
        }
        const bool rank_stabilized = fields_.contains("use_rslora") && !is_off(fields_["use_rslora"]);
        return float(rank_stabilized ? alpha / std::sqrt(r) : alpha / r);
    }

private:
    void check() const {
        const Json type = fields_.value("peft_type", Json());
        if (type != "LORA") {
            fail(ErrorCode::unsupported, where_, ": peft_type is ", type.dump(), "; halfbyte applies \"LORA\"");
        }
        for (const auto& [name, value] : fields_.items()) {
            if (std::find(std::begin(kNoEffect), std::end(kNoEffect), name) != std::end(kNoEffect) || is_off(value))
                continue;
            fail(ErrorCode::unsupported, where_, ": the field '", name, "' is ", value.dump(),
                 "; halfbyte does not apply it yet, and without it the adapter would give other answers");
        }
        const Json bias = fields_.value("bias", Json("none"));
        if (bias != "none") {
            fail(ErrorCode::unsupported, where_, ": bias is ", bias.dump(), "; halfbyte applies adapters with \"none\"");
        }
        const Json init = fields_.value("init_lora_weights", Json(true));
        if (!keeps_base(init)) {
            fail(ErrorCode::unsupported, where_, ": init_lora_weights is ", init.dump(),
                 ": the adapter was trained against base weights that this initialisation changed; save it with "
                 "path_initial_model_for_weight_conversion so that it becomes an ordinary LoRA");
        }
    }

    double number(const Json& value, std::string_view field) const {
        if (!value.is_number()) fail(ErrorCode::corrupt, where_, ": '", field, "' must be a number, found ", value.dump());
        return value.get<double>();
    }

    bool matches(const std::string& key, const char* patterns, const std::string& module) const {
        try {
            if (key.size() > kLongestPattern) throw std::regex_error(std::regex_constants::error_complexity);
            return std::regex_match(module, std::regex("(?:.*\\.)?(?:" + key + ")", kGrammar));
        } catch (const std::regex_error&) {
            fail(ErrorCode::unsupported, where_, ": the pattern '", key.substr(0, 80), "' in ", patterns,
                 " is not a regular expression that halfbyte understands; name the modules in full");
        }
    }

    // PEFT's get_pattern_key: the first key with re.match(rf"(.*\.)?({key})$", module), else the plain field.
    double by_pattern(const char* patterns, const char* plain, const std::string& module) const {
        if (fields_.contains(patterns) && fields_[patterns].is_object()) {
            for (const auto& [key, value] : fields_[patterns].items()) {
                if (matches(key, patterns, module)) return number(value, patterns);
            }
        }
        if (!fields_.contains(plain)) fail(ErrorCode::corrupt, where_, ": the field '", plain, "' is missing");
        return number(fields_[plain], plain);
    }

    std::string where_;
    Json fields_;
};

struct Pair {
    const SafetensorsEntry *a = nullptr, *b = nullptr;
};

// "base_model.model.<module>.lora_A.weight" -> <module>, and which half it is.
struct TensorName {
    std::string module;
    bool is_a;
};

std::optional<TensorName> parse_name(std::string_view name) {
    constexpr std::string_view kPrefix = "base_model.model.", kA = ".lora_A.weight", kB = ".lora_B.weight";
    if (!name.starts_with(kPrefix)) return std::nullopt;
    name.remove_prefix(kPrefix.size());
    if (name.ends_with(kA)) return TensorName{std::string(name.substr(0, name.size() - kA.size())), true};
    if (name.ends_with(kB)) return TensorName{std::string(name.substr(0, name.size() - kB.size())), false};
    return std::nullopt;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t size : shape) text.append(text.size() > 1 ? ", " : "").append(std::to_string(size));
    return text + "]";
}

void check_factor(const std::string& where, const SafetensorsEntry& entry, int64_t rows, int64_t cols, const char* meaning) {
    if (entry.dtype != DType::f32 && entry.dtype != DType::f16 && entry.dtype != DType::bf16) {
        fail(ErrorCode::unsupported, where, " has dtype ", name_of(entry.dtype), "; expected float32, float16 or bfloat16");
    }
    if (entry.shape.size() != 2 || entry.shape[0] != rows || entry.shape[1] != cols) {
        fail(ErrorCode::corrupt, where, " has shape ", shape_text(entry.shape), ", expected [", rows, ", ", cols, "] (",
             meaning, "); the adapter was trained on another model");
    }
}

}  // namespace

std::shared_ptr<const Adapter> read_peft_adapter(const std::filesystem::path& folder, std::string name, const Model& model,
                                                 Device& device) {
    const std::filesystem::path file = folder / "adapter_model.safetensors";
    const LoraConfig config(folder / "adapter_config.json");
    if (!std::filesystem::exists(file) && std::filesystem::exists(folder / "adapter_model.bin")) {
        fail_pickle(folder / "adapter_model.bin", "adapter_model.safetensors");
    }
    const auto tensors = read_safetensors(file);

    std::map<std::string, Pair> pairs;
    for (const auto& [tensor, entry] : tensors) {
        const std::optional<TensorName> parsed = parse_name(tensor);
        if (!parsed) {
            fail(ErrorCode::unsupported, file.string(), ": the tensor '", tensor,
                 "' is not the A or B of a linear layer; halfbyte does not apply it yet, and without it the adapter would "
                 "give other answers");
        }
        Pair& pair = pairs[parsed->module];
        (parsed->is_a ? pair.a : pair.b) = &entry;
    }
    if (pairs.empty()) fail(ErrorCode::corrupt, file.string(), ": there are no lora_A and lora_B tensors in it");

    std::unordered_map<std::string_view, int> module_index;
    for (size_t i = 0; i < model.modules().size(); i++) {
        module_index.emplace(model.modules()[i].base_name, int(i));
        module_index.emplace(model.modules()[i].name, int(i));
    }
    std::vector<LoraFactors> by_module(model.modules().size());
    for (const auto& [module_name, pair] : pairs) {
        const std::string where = concat(file.string(), ": '", module_name, "'");
        if (pair.a == nullptr || pair.b == nullptr) {
            fail(ErrorCode::corrupt, where, " has lora_", pair.a == nullptr ? "B but no lora_A" : "A but no lora_B",
                 "; the file is incomplete");
        }
        const auto found = module_index.find(module_name);
        if (found == module_index.end()) {
            if (model.unused(module_name + ".weight")) continue;
            fail(ErrorCode::unsupported, where, " is not a linear layer of this ", model.info().architecture,
                 " model; the adapter was trained on another model, or on a part that halfbyte does not adapt yet");
        }
        const Module& module = model.modules()[size_t(found->second)];
        const int64_t rank = pair.a->shape.empty() ? 0 : pair.a->shape[0];
        if (rank <= 0)
            fail(ErrorCode::corrupt, where, ": lora_A has shape ", shape_text(pair.a->shape), ", expected [r, in]");
        check_factor(where + " lora_A", *pair.a, rank, module.in_features, "[r, in]");
        check_factor(where + " lora_B", *pair.b, module.out_features, rank, "[out, r]");

        LoraFactors& factors = by_module[size_t(found->second)];
        if (factors.rank > 0) fail(ErrorCode::corrupt, where, " is adapted twice, under two names of the same layer");
        factors = device.upload_lora({.a = pair.a->bytes.data,
                                      .b = pair.b->bytes.data,
                                      .a_dtype = pair.a->dtype,
                                      .b_dtype = pair.b->dtype,
                                      .rank = rank,
                                      .in = module.in_features,
                                      .out = module.out_features,
                                      .scale = config.scale(module_name, rank)});
    }
    return std::make_shared<const Adapter>(std::move(name), std::move(by_module));
}

}  // namespace halfbyte
