// The one error type of halfbyte: a code and a text that says where, what was expected, what was found, what to do.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace halfbyte {

/// The same numbers as hb_status in include/halfbyte/halfbyte.h.
enum class ErrorCode : int {
    invalid_argument = 1,  ///< The caller passed a wrong shape, dtype, value or name.
    not_found = 2,         ///< A file, tensor, field, adapter or device is missing.
    corrupt = 3,           ///< Bytes that contradict their own format.
    unsupported = 4,       ///< Valid input that this build cannot run exactly; the text names the field.
    out_of_memory = 5,
    io = 6,         ///< The operating system refused: permission, full disk, unreadable file.
    cancelled = 7,  ///< The caller's callback asked to stop.
    internal = 8,   ///< A bug in halfbyte.
};

class Error : public std::exception {
public:
    Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}
    const char* what() const noexcept override { return message_.c_str(); }
    ErrorCode code() const noexcept { return code_; }
    const std::string& message() const noexcept { return message_; }

private:
    ErrorCode code_;
    std::string message_;
};

/// Streams every part into one text: concat("rows ", 3, " of ", 4).
template <class... Parts>
std::string concat(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return std::move(text).str();
}

/// Throws Error(code, concat(parts...)).
template <class... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
    throw Error(code, concat(parts...));
}

}  // namespace halfbyte
