// PEFT adapter folders -> Adapter bound to a model.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "io/safetensors.h"
#include "models/model.h"
#include "nn/adapter.h"
#include "runtime/peft_config.h"

namespace halfbyte {

/// adapter_config.json + adapter_model.safetensors of PEFT (peft 0.21, src/peft/utils/save_and_load.py). Every tensor must bind
/// to a module of the model and every field that changes the result must be understood.
/// Errors: not_found, corrupt (shapes that do not fit the layer), unsupported (naming the field or tensor).
std::shared_ptr<const Adapter> read_peft_adapter(const std::filesystem::path& folder, std::string name, const Model& model,
                                                 Device& device);
/// The same from what its two files hold; `where` starts the errors about tensors.
std::shared_ptr<const Adapter> bind_peft_adapter(const PeftConfig& config,
                                                 std::map<std::string, SafetensorsEntry, std::less<>> tensors,
                                                 const std::string& where, std::string name, const Model& model,
                                                 Device& device);

}  // namespace halfbyte
