#include <string>

#include "core/error.h"
#include "core/mapped_file.h"
#include "core/utf8.h"
#include "io/checkpoint.h"

namespace halfbyte {

std::string read_text_file(const std::filesystem::path& path) {
    const auto file = MappedFile::open(path);
    std::string text(reinterpret_cast<const char*>(file->data()), file->size());
    if (const size_t position = first_invalid_utf8(text); position != std::string_view::npos) {
        fail(ErrorCode::corrupt, path.string(), ": not UTF-8 text: byte ", position, " is part of no character");
    }
    return text;
}

}  // namespace halfbyte
