// adapter_config.json of PEFT (peft 0.21, src/peft/tuners/*/config.py): what kind of adapter it is, and what its fields say
// about the result.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/lora_config.h"

namespace halfbyte {

enum class PeftKind { lora, ia3, ln_tuning, trainable_tokens, prompt, prefix };

class PeftConfig {
public:
    /// The text of an adapter_config.json; `where` starts the errors. Every field that changes the result must be understood.
    /// Errors: corrupt (not JSON, a wrong type), unsupported (naming the kind or the field).
    PeftConfig(std::string_view text, std::string where);

    PeftKind kind = PeftKind::lora;
    std::string type;                ///< peft_type: "LORA", "P_TUNING", ...
    std::optional<LoraConfig> lora;  ///< of PeftKind::lora
    int64_t virtual_tokens = 0;      ///< of prompts and prefixes
    bool tied_weights = false;  ///< ensure_weight_tying: what is trained of the embedding holds for a tied output layer, too
    std::vector<std::string> modules_to_save;
    std::vector<std::pair<int64_t, int64_t>> layer_ranges;  ///< layer_replication: [first, last); empty: each layer once

    /// Tokens whose rows of `module` were trained, in the order of the tensor; empty: none.
    std::vector<int32_t> token_indices(std::string_view module) const;
    bool has_tokens() const { return !tokens_.empty(); }  ///< the config names such tokens

private:
    std::vector<std::pair<std::string, std::vector<int32_t>>> tokens_;  // by module; "": any
};

}  // namespace halfbyte
