// JSON text to a document, strictly. Only C++ files that need a document include this; the headers of io/ hide it.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace halfbyte {

/// `where` starts every error. Errors: corrupt, for text that is not JSON (with the position), a key that appears twice in
/// one object, nesting deeper than 64, anything after the document, or strings that are not UTF-8.
nlohmann::json parse_json(std::string_view text, std::string_view where);

}  // namespace halfbyte
