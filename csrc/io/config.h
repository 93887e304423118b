// The hyperparameters of a checkpoint, read by name, each read remembered, so that nothing can be ignored in silence.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace halfbyte {

/// One hyperparameter under both of its names. An empty name: the format has no word for it.
struct Key {
    std::string_view hf;    ///< in config.json: "num_hidden_layers"
    std::string_view gguf;  ///< after "<architecture>.": "block_count"
};

/// config.json of a Hugging Face folder, or the "<architecture>.*" metadata of a GGUF file. A JSON null counts as absent.
/// Errors of every reader: not_found where the field is absent (the form without a fallback), corrupt where it has the wrong
/// type or is out of range. Not thread-safe: a checkpoint is loaded by one thread.
class Config {
public:
    struct Value;  // the parsed document
    Config(std::string where, bool gguf, std::shared_ptr<const Value> value);

    bool is_gguf() const { return gguf_; }
    /// "LlamaForCausalLM" (config.json "architectures"[0]; empty if absent) or "llama" (GGUF).
    const std::string& architecture() const { return architecture_; }
    /// "llama": config.json "model_type", GGUF "general.architecture".
    const std::string& model_type() const { return model_type_; }
    const std::string& where() const { return where_; }  ///< For errors: "/path/config.json"

    bool has(Key key) const;
    /// True where config.json names the field with the value null (which some fields tell from absence).
    bool is_null(std::string_view hf) const;
    int64_t integer(Key key) const;
    int64_t integer(Key key, int64_t fallback) const;
    double number(Key key) const;
    double number(Key key, double fallback) const;
    bool flag(Key key, bool fallback) const;
    std::string text(Key key) const;
    std::string text(Key key, std::string_view fallback) const;
    /// The object under a Hugging Face key ("rope_scaling"); nothing if absent or in a GGUF. Its own fields must be finished
    /// too.
    std::optional<Config> child(std::string_view hf) const;

    /// Says that these fields (either name) are known not to change the result of a forward pass.
    void ignore(std::initializer_list<std::string_view> names) const;
    /// Throws unsupported, naming the first field that was neither read nor ignored. A list of fields that never matter
    /// (initializer_range, torch_dtype, transformers_version, token ids, ...) is built in; so are names that begin with "_".
    void finish() const;

private:
    struct State;  // fields read so far, shared by copies
    std::string where_;
    bool gguf_;
    std::string architecture_, model_type_;
    std::shared_ptr<const Value> value_;
    std::shared_ptr<State> state_;
};

}  // namespace halfbyte
