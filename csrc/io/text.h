// UTF-8. Private to io/.
#pragma once

#include <cstddef>
#include <string_view>

namespace halfbyte {

/// The first byte that is not part of well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF); npos if none.
size_t first_invalid_utf8(std::string_view text);

}  // namespace halfbyte
