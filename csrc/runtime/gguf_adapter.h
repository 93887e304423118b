// GGUF adapter files -> Adapter bound to a model.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "io/gguf.h"
#include "models/model.h"
#include "nn/adapter.h"

namespace halfbyte {

/// Two kinds, told apart by adapter.type:
/// - "lora", as llama.cpp writes and reads it (convert_lora_to_gguf.py, src/llama-adapter.cpp): tensors NAME.weight.lora_a [r, in]
///   and .lora_b [out, r] under GGUF's names, scale = adapter.lora.alpha / r, rows of rotary layers as in its models;
/// - "peft", halfbyte's own: a PEFT folder whole, its adapter_config.json under halfbyte.adapter_config and its tensors under
///   their names.
/// Errors: not_found, corrupt, unsupported (naming the key or tensor).
std::shared_ptr<const Adapter> read_gguf_adapter(const std::filesystem::path& path, std::string name, const Model& model,
                                                 Device& device);
/// The same from a file that is open.
std::shared_ptr<const Adapter> bind_gguf_adapter(const GgufFile& file, std::string name, const Model& model, Device& device);

}  // namespace halfbyte
