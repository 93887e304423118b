#include "io/config.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>

#include "core/error.h"
#include "core/utf8.h"
#include "io/config_value.h"
#include "io/json.h"

namespace halfbyte {

namespace {

using nlohmann::json;

// Fields of config.json that say nothing about the result of a forward pass: what model this is, training, generation
// defaults (the reference keeps those in generation_config.json), heads for classification, output options of the reference.
// An architecture for which one of them does matter reads it all the same; that it is listed here only keeps finish() quiet.
constexpr std::string_view kHarmless[] = {
    // identity and bookkeeping
    "architectures",
    "dtype",
    "is_llama_config",
    "model_type",
    "name_or_path",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    // io/ has already dealt with it
    "quantization_config",
    // training
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "layerdrop",
    "resid_pdrop",
    "residual_dropout",
    // token ids: the tokenizer's business
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    // heads, labels and tasks
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tokenizer_class",
    // of the original BERT code; nothing has ever read them
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    // how the reference computes and what it returns
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "return_dict",
    "return_dict_in_generate",
    "tf_legacy_loss",
    "torchscript",
    "use_cache",
    "use_return_dict",
    // generation defaults in old files
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
};

// Fields that change the result unless they have the value that switches them off.
bool is_switched_off(std::string_view name, const json& value) {
    constexpr std::string_view kOffWhenFalse[] = {"add_cross_attention", "is_decoder", "is_encoder_decoder",
                                                  "rope_interleaved", "tie_encoder_decoder"};
    if (std::find(std::begin(kOffWhenFalse), std::end(kOffWhenFalse), name) != std::end(kOffWhenFalse)) {
        return value.is_boolean() && !value.get<bool>();
    }
    return name == "pruned_heads" && (value.is_object() || value.is_array()) && value.empty();
}

// Fields below "<architecture>." that say nothing about a forward pass.
constexpr std::string_view kHarmlessGguf[] = {"rope.scaling.finetuned"};

bool is_harmless(bool gguf, const std::string& name, const json& value) {
    if (gguf) return std::find(std::begin(kHarmlessGguf), std::end(kHarmlessGguf), name) != std::end(kHarmlessGguf);
    if (name.starts_with("_")) return true;
    return std::find(std::begin(kHarmless), std::end(kHarmless), name) != std::end(kHarmless) ||
           is_switched_off(name, value);
}

/// The value as text for an error, short.
std::string shown(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
}

}  // namespace

struct Config::State {
    std::set<std::string, std::less<>> known;  // read or ignored
};

namespace {

std::string_view name_of(Key key, bool gguf) { return gguf ? key.gguf : key.hf; }

/// The field, or null where it is absent.
const json* find(const json& fields, std::string_view name) {
    if (name.empty()) return nullptr;
    const auto found = fields.find(name);
    return found == fields.end() || found->is_null() ? nullptr : &*found;
}

std::string full_name(const Config& config, Key key) {
    if (!config.is_gguf()) return std::string(key.hf);
    return config.architecture() + "." + std::string(key.gguf);
}

[[noreturn]] void fail_absent(const Config& config, Key key) {
    const std::string_view name = name_of(key, config.is_gguf());
    if (name.empty()) {
        fail(ErrorCode::not_found, config.where(), ": a value known as \"", config.is_gguf() ? key.hf : key.gguf,
             "\" in the other format has no name in this one");
    }
    fail(ErrorCode::not_found, config.where(), ": the field \"", full_name(config, key), "\" is missing");
}

[[noreturn]] void fail_type(const Config& config, Key key, std::string_view expected, const json& found) {
    fail(ErrorCode::corrupt, config.where(), ": the field \"", full_name(config, key), "\" must be ", expected, ", found ",
         shown(found));
}

int64_t to_integer(const Config& config, Key key, const json& value) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max())) {
        fail_type(config, key, "an integer of at most 63 bits", value);
    }
    if (!value.is_number_integer()) fail_type(config, key, "an integer", value);
    return value.get<int64_t>();
}

double to_number(const Config& config, Key key, const json& value) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) fail_type(config, key, "a number", value);
    return value.get<double>();
}

}  // namespace

Config::Config(std::string where, bool gguf, std::shared_ptr<const Value> value)
    : where_(std::move(where)), gguf_(gguf), value_(std::move(value)), state_(std::make_shared<State>()) {
    if (!value_->fields.is_object()) {
        fail(ErrorCode::corrupt, where_, ": expected a JSON object, found ", shown(value_->fields));
    }
    if (gguf_) {
        architecture_ = model_type_ = value_->gguf_architecture;
        return;
    }
    if (const json* list = find(value_->fields, "architectures")) {
        const bool good = list->is_array() && (list->empty() || list->front().is_string());
        if (!good) fail_type(*this, {"architectures", ""}, "a list of names", *list);
        if (!list->empty()) architecture_ = list->front().get<std::string>();
    }
    if (const json* type = find(value_->fields, "model_type")) {
        if (!type->is_string()) fail_type(*this, {"model_type", ""}, "a name", *type);
        model_type_ = type->get<std::string>();
    }
}

bool Config::is_null(std::string_view hf) const {
    const auto found = value_->fields.find(hf);
    return !gguf_ && found != value_->fields.end() && found->is_null();
}

bool Config::has(Key key) const { return find(value_->fields, name_of(key, gguf_)) != nullptr; }

int64_t Config::integer(Key key) const {
    if (!has(key)) fail_absent(*this, key);
    return integer(key, 0);
}

int64_t Config::integer(Key key, int64_t fallback) const {
    const json* value = find(value_->fields, name_of(key, gguf_));
    if (value == nullptr) return fallback;
    state_->known.emplace(name_of(key, gguf_));
    return to_integer(*this, key, *value);
}

double Config::number(Key key) const {
    if (!has(key)) fail_absent(*this, key);
    return number(key, 0.0);
}

double Config::number(Key key, double fallback) const {
    const json* value = find(value_->fields, name_of(key, gguf_));
    if (value == nullptr) return fallback;
    state_->known.emplace(name_of(key, gguf_));
    return to_number(*this, key, *value);
}

bool Config::flag(Key key, bool fallback) const {
    const json* value = find(value_->fields, name_of(key, gguf_));
    if (value == nullptr) return fallback;
    state_->known.emplace(name_of(key, gguf_));
    if (!value->is_boolean()) fail_type(*this, key, "true or false", *value);
    return value->get<bool>();
}

std::string Config::text(Key key) const {
    if (!has(key)) fail_absent(*this, key);
    return text(key, "");
}

std::string Config::text(Key key, std::string_view fallback) const {
    const json* value = find(value_->fields, name_of(key, gguf_));
    if (value == nullptr) return std::string(fallback);
    state_->known.emplace(name_of(key, gguf_));
    if (!value->is_string()) fail_type(*this, key, "a text", *value);
    std::string text = value->get<std::string>();
    if (first_invalid_utf8(text) != std::string_view::npos) fail_type(*this, key, "a text in UTF-8", *value);
    return text;
}

std::optional<Config> Config::child(std::string_view hf) const {
    const json* value = gguf_ ? nullptr : find(value_->fields, hf);
    if (value == nullptr) return std::nullopt;
    state_->known.emplace(hf);
    if (!value->is_object()) fail_type(*this, {hf, ""}, "an object", *value);
    auto document = std::make_shared<Value>();
    document->fields = *value;
    return Config(concat(where_, ": ", hf), false, std::move(document));
}

void Config::ignore(std::initializer_list<std::string_view> names) const {
    for (const std::string_view name : names) state_->known.emplace(name);
}

void Config::finish() const {
    for (const auto& [name, value] : value_->fields.items()) {
        if (value.is_null() || state_->known.contains(name) || is_harmless(gguf_, name, value)) continue;
        fail(ErrorCode::unsupported, where_, ": the field \"", gguf_ ? architecture_ + "." + name : name, "\" (",
             shown(value), ") is not known to this version, and it might change the model's answers");
    }
}

}  // namespace halfbyte
