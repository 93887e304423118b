// Token bytes to text that may be shown: whole UTF-8 characters only, and nothing that may turn out to be a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace halfbyte {

class TextStream {
public:
    /// Generation stops where the first of these is complete; where several end at once, the longest counts.
    /// Errors: invalid_argument for an empty stop string and for one that is not UTF-8.
    explicit TextStream(std::vector<std::string> stop_strings);
    /// Adds the bytes of one token; returns the text that has become certain (valid UTF-8, perhaps empty). Bytes that can't
    /// become UTF-8 turn into U+FFFD, one for each maximal subpart (Unicode 3.9, practice 1; the WHATWG decoder; Python's
    /// errors="replace"). Nothing is returned after a stop.
    std::string push(std::string_view bytes);
    /// The rest, at the end of generation: incomplete characters become U+FFFD. Empty once stopped().
    std::string finish();
    /// True once a stop string has been seen; the text before it has been returned, it and what follows never will be.
    bool stopped() const { return stopped_; }

private:
    // Knuth, Morris and Pratt's automaton: `matched` bytes of `text` are the last bytes seen.
    struct Stop {
        std::string text;
        std::vector<size_t> border;  // [size]: of text[0..i], the longest proper prefix that is a suffix too
        size_t matched = 0;
    };
    void append(std::string_view character);

    std::vector<Stop> stops_;
    std::string pending_;  // raw bytes of an incomplete character, at most 3
    std::string text_;     // UTF-8 not returned yet
    bool stopped_ = false;
};

}  // namespace halfbyte
