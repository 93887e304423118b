#include "models/hyperparameters.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <string>
#include <utility>

#include "core/error.h"

namespace halfbyte {

int64_t dimension(const Config& config, Key key, int64_t fallback) {
    const int64_t value = config.integer(key, fallback);
    if (value < 1 || value > std::numeric_limits<int32_t>::max()) {
        fail(ErrorCode::corrupt, config.where(), ": the field \"", config.is_gguf() ? key.gguf : key.hf, "\" is ", value,
             ", expected a count from 1 to ", std::numeric_limits<int32_t>::max());
    }
    return value;
}

int64_t dimension(const Config& config, Key key) { return dimension(config, key, config.integer(key)); }

Activation activation_named(std::string_view name, const Config& config) {
    if (name == "silu" || name == "swish") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    if (name == "tanh") return Activation::tanh;
    fail(ErrorCode::unsupported, config.where(), ": the activation '", name,
         "' is not known; halfbyte has silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu and tanh");
}

namespace {

// float32 arithmetic in transformers' order: the network was trained with these very frequencies.
std::vector<float> base_frequencies(const Config& config, int64_t rotary_dim, int64_t head_dim, double theta) {
    if (rotary_dim < 0 || rotary_dim > head_dim || rotary_dim % 2 != 0 || !(theta > 0)) {
        fail(ErrorCode::corrupt, config.where(), ": rotary embedding of ", rotary_dim, " of the ", head_dim,
             " dimensions of a head with theta ", theta, "; expected an even number of them and a positive theta");
    }
    std::vector<float> frequencies(static_cast<size_t>(rotary_dim / 2));
    for (size_t i = 0; i < frequencies.size(); i++) {
        const float exponent = float(2 * i) / float(rotary_dim);
        frequencies[i] = 1.0f / float(std::pow(theta, double(exponent)));
    }
    return frequencies;
}

// A factor of zero, a theta of 1e-300: not a crash, but NaN for an answer.
Rope checked(Rope rope, const Config& config) {
    for (size_t i = 0; i < rope.frequencies.size(); i++) {
        if (std::isfinite(rope.frequencies[i])) continue;
        fail(ErrorCode::corrupt, config.where(), ": rotary frequency ", i, " comes to ", rope.frequencies[i],
             ", expected a finite number: one of the parameters of the rotary embedding is out of range");
    }
    return rope;
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
void scale_llama3(std::vector<float>& frequencies, const Config& parameters) {
    const auto factor = float(parameters.number({"factor", ""}));
    const auto low = float(parameters.number({"low_freq_factor", ""}));
    const auto high = float(parameters.number({"high_freq_factor", ""}));
    const auto context = float(parameters.number({"original_max_position_embeddings", ""}));
    for (float& frequency : frequencies) {
        const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
        if (wavelength > context / low) {
            frequency = frequency / factor;
        } else if (wavelength >= context / high) {
            const float smooth = (context / wavelength - low) / (high - low);
            frequency = (1 - smooth) * frequency / factor + smooth * frequency;
        }
    }
}

Rope rope_from_gguf(const Config& config, int64_t head_dim, double default_theta, const std::vector<float>& factors) {
    const int64_t rotary_dim = config.integer({"", "rope.dimension_count"}, head_dim);
    Rope rope{base_frequencies(config, rotary_dim, head_dim, config.number({"", "rope.freq_base"}, default_theta))};
    const std::string type = config.text({"", "rope.scaling.type"}, "none");
    double factor = config.number({"", "rope.scaling.factor"}, 1.0);
    if (type == "none" && config.has({"", "rope.scale_linear"})) factor = config.number({"", "rope.scale_linear"});
    if (type != "none" && type != "linear") {
        fail(ErrorCode::unsupported, config.where(), ": rope.scaling.type is '", type,
             "'; halfbyte applies 'none' and 'linear' (and llama3 through the tensor rope_freqs)");
    }
    for (size_t i = 0; i < rope.frequencies.size(); i++) {
        rope.frequencies[i] /= float(factor);
        if (i < factors.size()) rope.frequencies[i] /= factors[i];
    }
    return checked(std::move(rope), config);
}

}  // namespace

Rope rope_from_config(const Config& config, int64_t head_dim, double default_theta, const std::vector<float>& factors) {
    if (config.is_gguf()) return rope_from_gguf(config, head_dim, default_theta, factors);
    std::optional<Config> parameters = config.child("rope_parameters");
    double theta = config.number({"rope_theta", ""}, default_theta);
    if (!parameters) parameters = config.child("rope_scaling");
    if (!parameters) return checked({base_frequencies(config, head_dim, head_dim, theta)}, config);
    theta = parameters->number({"rope_theta", ""}, theta);
    const double partial = parameters->number({"partial_rotary_factor", ""}, 1.0);
    if (!(partial >= 0 && partial <= 1)) {
        fail(ErrorCode::corrupt, parameters->where(), ": partial_rotary_factor is ", partial, ", expected 0 to 1");
    }
    const std::string old_type = parameters->text({"type", ""}, "default");
    const std::string type = parameters->text({"rope_type", ""}, old_type);
    Rope rope{base_frequencies(config, int64_t(double(head_dim) * partial), head_dim, theta)};
    if (type == "linear") {
        const auto factor = float(parameters->number({"factor", ""}));
        for (float& frequency : rope.frequencies) frequency /= factor;
    } else if (type == "llama3") {
        scale_llama3(rope.frequencies, *parameters);
    } else if (type != "default") {
        fail(ErrorCode::unsupported, parameters->where(), ": rope_type is '", type,
             "'; halfbyte applies 'default', 'linear' and 'llama3'");
    }
    parameters->finish();
    return checked(std::move(rope), *parameters);
}

}  // namespace halfbyte
