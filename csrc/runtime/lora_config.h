// adapter_config.json of PEFT (peft 0.21, tuners/lora/config.py): is the adapter one that can be applied, and how strongly.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {

class LoraConfig {
public:
    /// The text of an adapter_config.json; `where` starts the errors. Every field that changes the result must be understood.
    /// Errors: corrupt (not JSON, a wrong type), unsupported (naming the field).
    LoraConfig(std::string_view text, std::string where);
    ~LoraConfig();
    LoraConfig(LoraConfig&&) noexcept;

    /// alpha / r or alpha / sqrt(r), as LoraLayer.update_layer computes it. `module` as it is named in the adapter, `rank` that
    /// of its tensors. Error corrupt where the config says another rank or the scale is no finite number.
    float scale(const std::string& module, int64_t rank) const;
    bool dora() const { return dora_; }
    bool lora_bias() const { return lora_bias_; }                                         ///< B has a bias
    bool has_biases() const { return biases_; }                                           ///< `bias` is not "none"
    const std::vector<int32_t>& invocation_tokens() const { return invocation_tokens_; }  ///< of an aLoRA, else empty

private:
    struct Fields;
    std::string where_;
    bool dora_ = false, lora_bias_ = false, biases_ = false;
    std::vector<int32_t> invocation_tokens_;
    std::unique_ptr<const Fields> fields_;
};

}  // namespace halfbyte
