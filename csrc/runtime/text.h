// Token bytes to text that may be shown: whole UTF-8 characters only, and nothing that may turn out to be a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {

class TextStream {
public:
    explicit TextStream(std::vector<std::string> stop_strings);
    /// Adds the bytes of one token; returns the text that has become certain (valid UTF-8, perhaps empty). Bytes that can't
    /// become UTF-8 turn into U+FFFD.
    std::string push(std::string_view bytes);
    /// The rest, at the end of generation: incomplete characters become U+FFFD. Empty once stopped().
    std::string finish();
    /// True once a stop string has been seen; the text before it has been returned, it and what follows never will be.
    bool stopped() const { return stopped_; }

private:
    std::vector<std::string> stops_;
    std::string pending_;  // raw bytes held back
    bool stopped_ = false;
};

}  // namespace halfbyte
