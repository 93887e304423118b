// UTF-8, byte by byte: Table 3-7 of the Unicode standard (no overlong forms, no surrogates, at most U+10FFFF).
#pragma once

#include <cstddef>
#include <string_view>

namespace halfbyte {

/// What the bytes at the front of a text are.
struct Utf8Character {
    size_t bytes;   ///< a whole character, or the maximal subpart of one that can't become one; >= 1
    bool valid;     ///< a whole character
    bool complete;  ///< false: the text ended where more bytes could make it a character
};

/// `text` is not empty.
Utf8Character first_utf8_character(std::string_view text);

/// The first byte that is not part of well-formed UTF-8; npos if none.
size_t first_invalid_utf8(std::string_view text);

}  // namespace halfbyte
