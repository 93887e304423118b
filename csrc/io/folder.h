// Hugging Face folders and single .safetensors files. Private to io/.
#pragma once

#include <memory>

#include "io/checkpoint.h"

namespace halfbyte {

/// `path`: a folder with config.json and model.safetensors or a sharded index, or one .safetensors file with config.json
/// beside it. Errors: those of Checkpoint::open.
std::unique_ptr<Checkpoint> open_folder_checkpoint(const std::filesystem::path& path);

}  // namespace halfbyte
