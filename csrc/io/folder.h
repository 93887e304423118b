// Hugging Face folders and single .safetensors files. Private to io/.
#pragma once

#include <memory>
#include <string>

#include "io/checkpoint.h"
#include "io/tensors.h"

namespace halfbyte {

/// `path`: a folder with config.json and model.safetensors or a sharded index, or one .safetensors file with config.json
/// beside it. Errors: those of Checkpoint::open.
std::unique_ptr<Checkpoint> open_folder_checkpoint(const std::filesystem::path& path);

/// The text of a config.json, which lies at `path`. Errors: corrupt, unsupported (a quantization_config of another package).
Config parse_config(const std::filesystem::path& path, const std::string& text);

/// The checkpoint at `path` from what its files hold; `where` starts the errors about tensors.
std::unique_ptr<Checkpoint> make_folder_checkpoint(const std::filesystem::path& path, Config config, std::string config_text,
                                                   TensorMap tensors, std::string where);

}  // namespace halfbyte
