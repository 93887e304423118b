#include "core/utf8.h"

#include <cstdint>

namespace halfbyte {

Utf8Character first_utf8_character(std::string_view text) {
    const auto byte = [&](size_t i) { return uint8_t(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return {1, true, true};
    if (lead < 0xc2 || lead > 0xf4) return {1, false, true};
    const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    // The second byte has a narrower range after some leads.
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == text.size()) return {i, false, false};
        if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return {i, false, true};
    }
    return {length, true, true};
}

size_t first_invalid_utf8(std::string_view text) {
    for (size_t i = 0; i < text.size();) {
        const Utf8Character character = first_utf8_character(text.substr(i));
        if (!character.valid) return i;
        i += character.bytes;
    }
    return std::string_view::npos;
}

}  // namespace halfbyte
