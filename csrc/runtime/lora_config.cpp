#include "runtime/lora_config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/utf8.h"
#include "io/json.h"

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
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "layer_replication",
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

/// The value as text for an error, short.
std::string shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
}

// A pattern comes from a file that somebody else wrote: matching must take neither exponential time nor a deep stack.
constexpr size_t kLongestPattern = 1000;
constexpr size_t kMostPatterns = 10'000;  // ordered_json looks through its keys one by one
#ifdef __GLIBCXX__
constexpr auto kGrammar = std::regex::ECMAScript | std::regex_constants::__polynomial;
#else
constexpr auto kGrammar = std::regex::ECMAScript;
#endif

/// How long the pattern would be with its counted repetitions ("a{3}") written out, at most: the compiler does write them out,
/// and matching goes as deep as what it makes is long.
size_t written_out(const std::string& pattern) {
    size_t length = pattern.size();
    for (size_t i = 0; i < pattern.size(); i++) {
        if (pattern[i] != '{') continue;
        size_t count = 0, most = 1;
        for (i++; i < pattern.size() && pattern[i] != '}'; i++) {
            const bool digit = pattern[i] >= '0' && pattern[i] <= '9';
            count = digit ? std::min(10 * count + size_t(pattern[i] - '0'), kLongestPattern + 1) : 0;
            most = std::max(most, count);
        }
        length *= most;
        if (length > kLongestPattern) break;
    }
    return length;
}

struct Pattern {
    std::regex expression;
    double value;
};

}  // namespace

struct LoraConfig::Fields {
    double r = 0, alpha = 0;
    bool rank_stabilized = false;
    std::vector<Pattern> ranks, alphas;
};

LoraConfig::LoraConfig(LoraConfig&&) noexcept = default;
LoraConfig::~LoraConfig() = default;

LoraConfig::LoraConfig(std::string_view text, std::string where) : where_(std::move(where)) {
    // Refuses what ordered_json would let pass: duplicate keys, deep nesting.
    const nlohmann::json strict = parse_json(text, where_);
    if (!strict.is_object()) fail(ErrorCode::corrupt, where_, ": expected a JSON object, found ", strict.type_name());
    const auto check_size = [&](const nlohmann::json& object, std::string_view name) {
        if (!object.is_object() || object.size() <= kMostPatterns) return;
        fail(ErrorCode::corrupt, where_, ": ", name, " has ", object.size(), " entries, the limit is ", kMostPatterns);
    };
    check_size(strict, "the object");
    for (const auto& [name, value] : strict.items()) check_size(value, name);
    const Json config = Json::parse(text);

    const Json type = config.value("peft_type", Json());
    if (type != "LORA") fail(ErrorCode::unsupported, where_, ": peft_type is ", shown(type), "; halfbyte applies \"LORA\"");
    for (const auto& [name, value] : config.items()) {
        if (std::find(std::begin(kNoEffect), std::end(kNoEffect), name) != std::end(kNoEffect) || is_off(value)) continue;
        fail(ErrorCode::unsupported, where_, ": the field '", name, "' is ", shown(value),
             "; halfbyte does not apply it yet, and without it the adapter would give other answers");
    }
    const Json bias = config.value("bias", Json("none"));
    if (bias != "none" && bias != "all" && bias != "lora_only") {
        fail(ErrorCode::unsupported, where_, ": bias is ", shown(bias), R"(; expected "none", "all" or "lora_only")");
    }
    biases_ = bias != "none";
    const auto flag = [&](const char* field) {
        const Json value = config.value(field, Json());
        if (!value.is_boolean() && !value.is_null())
            fail(ErrorCode::corrupt, where_, ": '", field, "' must be true or false, found ", shown(value));
        return value.is_boolean() && value.get<bool>();
    };
    dora_ = flag("use_dora"), lora_bias_ = flag("lora_bias");
    if (const Json tokens = config.value("alora_invocation_tokens", Json()); !tokens.is_null()) {
        const auto good = [](const Json& id) {
            return id.is_number_integer() && id.get<double>() >= 0 &&
                   id.get<double>() <= double(std::numeric_limits<int32_t>::max());
        };
        if (!tokens.is_array() || !std::all_of(tokens.begin(), tokens.end(), good))
            fail(ErrorCode::corrupt, where_, ": 'alora_invocation_tokens' must be a list of tokens, found ", shown(tokens));
        for (const Json& id : tokens) invocation_tokens_.push_back(id.get<int32_t>());
    }
    const Json init = config.value("init_lora_weights", Json(true));
    if (!keeps_base(init)) {
        fail(ErrorCode::unsupported, where_, ": init_lora_weights is ", shown(init),
             ": the adapter was trained against base weights that this initialisation changed; save it with "
             "path_initial_model_for_weight_conversion so that it becomes an ordinary LoRA");
    }

    Fields fields;
    const auto number = [&](const Json& value, std::string_view field) {
        if (!value.is_number()) fail(ErrorCode::corrupt, where_, ": '", field, "' must be a number, found ", shown(value));
        return value.get<double>();
    };
    const auto required = [&](const char* field) {
        if (!config.contains(field)) fail(ErrorCode::corrupt, where_, ": the field '", field, "' is missing");
        return number(config[field], field);
    };
    // PEFT's get_pattern_key: the first key with re.match(rf"(.*\.)?({key})$", module).
    const auto patterns = [&](const char* field) {
        std::vector<Pattern> list;
        const Json object = config.value(field, Json());
        if (!object.is_object() && !object.is_null()) {
            fail(ErrorCode::corrupt, where_, ": '", field, "' must be an object, found ", shown(object));
        }
        for (const auto& [key, value] : object.items()) {
            const double typed = number(value, field);
            try {
                if (written_out(key) > kLongestPattern) throw std::regex_error(std::regex_constants::error_complexity);
                list.push_back({std::regex("(?:.*\\.)?(?:" + key + ")", kGrammar), typed});
            } catch (const std::regex_error&) {
                const std::string start = key.substr(0, 80);  // and without half of a character at its end
                fail(ErrorCode::unsupported, where_, ": the pattern '", start.substr(0, first_invalid_utf8(start)), "' in ",
                     field, " is not a regular expression that halfbyte understands; name the modules in full");
            }
        }
        return list;
    };
    fields.r = required("r"), fields.alpha = required("lora_alpha");
    fields.rank_stabilized = flag("use_rslora");
    fields.ranks = patterns("rank_pattern"), fields.alphas = patterns("alpha_pattern");
    fields_ = std::make_unique<const Fields>(std::move(fields));
}

float LoraConfig::scale(const std::string& module, int64_t rank) const {
    const auto of = [&](const std::vector<Pattern>& patterns, double plain) {
        for (const Pattern& pattern : patterns) {
            try {
                if (std::regex_match(module, pattern.expression)) return pattern.value;
            } catch (const std::regex_error&) {
                fail(ErrorCode::unsupported, where_, ": a pattern is too complex to be matched with '", module,
                     "'; name the modules in full");
            }
        }
        return plain;
    };
    const double r = of(fields_->ranks, fields_->r), alpha = of(fields_->alphas, fields_->alpha);
    if (r != double(rank) || rank < 1) {
        fail(ErrorCode::corrupt, where_, ": rank ", r, " is configured for '", module, "', but its tensors have rank ", rank,
             "; the file and its config do not belong together");
    }
    const double scale = fields_->rank_stabilized ? alpha / std::sqrt(r) : alpha / r;
    if (!(std::abs(scale) <= double(std::numeric_limits<float>::max()))) {
        fail(ErrorCode::corrupt, where_, ": lora_alpha ", alpha, " and rank ", r, " of '", module,
             "' give a scale that is no finite float32");
    }
    return float(scale);
}

}  // namespace halfbyte
