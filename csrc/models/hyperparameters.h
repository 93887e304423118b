// Hyperparameters that several architectures spell alike: activations by name, rotary frequencies from the config.
#pragma once

#include <string_view>

#include "io/config.h"
#include "nn/layers.h"

namespace halfbyte {

/// A count of things: 1 to 2^31 - 1. Errors: not_found (absent, in the form without a fallback), corrupt.
int64_t dimension(const Config& config, Key key);
int64_t dimension(const Config& config, Key key, int64_t fallback);

/// "silu", "gelu", "gelu_new", ... as transformers' ACT2FN has them. Error unsupported for a name that is not known.
Activation activation_named(std::string_view name, const Config& config);

/// Rotary frequencies of transformers' `rope_parameters` (5.x), of `rope_theta` + `rope_scaling` (4.x), or of GGUF
/// "rope.*": types default, linear and llama3 (modeling_rope_utils.py). `factors`: GGUF "rope_freqs", or empty.
/// Errors: unsupported (another type), corrupt.
Rope rope_from_config(const Config& config, int64_t head_dim, double default_theta, const std::vector<float>& factors);

}  // namespace halfbyte
