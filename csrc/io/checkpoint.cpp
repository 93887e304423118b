#include "io/checkpoint.h"

#include <cstring>

#include "core/error.h"
#include "core/mapped_file.h"
#include "io/folder.h"
#include "io/gguf.h"

namespace halfbyte {

std::unique_ptr<Checkpoint> Checkpoint::open(const std::filesystem::path& path) {
    std::error_code problem;
    const auto status = std::filesystem::status(path, problem);
    if (status.type() == std::filesystem::file_type::not_found) {
        fail(ErrorCode::not_found, path.string(), ": no such file or folder");
    }
    if (problem) fail(ErrorCode::io, path.string(), ": cannot be read: ", problem.message());
    if (std::filesystem::is_directory(status)) return open_folder_checkpoint(path);

    const std::string extension = path.extension().string();
    if (extension == ".gguf") return std::make_unique<GgufCheckpoint>(path);
    if (extension == ".safetensors") return open_folder_checkpoint(path);
    if (extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt") fail_pickle(path);
    const auto file = MappedFile::open(path);
    if (file->size() >= 4 && std::memcmp(file->data(), "GGUF", 4) == 0) return std::make_unique<GgufCheckpoint>(path);
    fail(ErrorCode::unsupported, path.string(),
         ": neither a folder nor a .safetensors or .gguf file; for a Hugging Face model pass its folder");
}

}  // namespace halfbyte
