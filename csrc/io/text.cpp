#include "io/text.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/mapped_file.h"
#include "io/checkpoint.h"

namespace halfbyte {

size_t first_invalid_utf8(std::string_view text) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const size_t size = text.size();
    size_t i = 0;
    while (i < size) {
        const uint8_t lead = bytes[i];
        if (lead < 0x80) {
            i++;
            continue;
        }
        // Table 3-7 of the Unicode standard: the second byte has a narrower range after some leads.
        size_t length = 0;
        uint8_t low = 0x80, high = 0xbf;
        if (lead >= 0xc2 && lead <= 0xdf) {
            length = 2;
        } else if (lead >= 0xe0 && lead <= 0xef) {
            length = 3;
            if (lead == 0xe0) low = 0xa0;
            if (lead == 0xed) high = 0x9f;
        } else if (lead >= 0xf0 && lead <= 0xf4) {
            length = 4;
            if (lead == 0xf0) low = 0x90;
            if (lead == 0xf4) high = 0x8f;
        }
        if (length == 0 || length > size - i || bytes[i + 1] < low || bytes[i + 1] > high) return i;
        for (size_t k = 2; k < length; k++)
            if ((bytes[i + k] & 0xc0) != 0x80) return i;
        i += length;
    }
    return std::string_view::npos;
}

std::string read_text_file(const std::filesystem::path& path) {
    const auto file = MappedFile::open(path);
    std::string text(reinterpret_cast<const char*>(file->data()), file->size());
    if (const size_t position = first_invalid_utf8(text); position != std::string_view::npos) {
        fail(ErrorCode::corrupt, path.string(), ": not UTF-8 text: byte ", position, " is part of no character");
    }
    return text;
}

}  // namespace halfbyte
