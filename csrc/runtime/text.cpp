#include "runtime/text.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/error.h"

namespace halfbyte {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

/// What the bytes at the front of a text are.
struct Character {
    size_t bytes;   ///< a whole character, or the maximal subpart of one that can't become one; >= 1
    bool valid;     ///< a whole character
    bool complete;  ///< false: the text ended where more bytes could make it a character
};

/// Table 3-7 of the Unicode standard: the lead byte gives the length and the range of the second byte.
Character first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return uint8_t(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return {1, true, true};
    if (lead < 0xc2 || lead > 0xf4) return {1, false, true};
    const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == text.size()) return {i, false, false};
        if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return {i, false, true};
    }
    return {length, true, true};
}

bool is_utf8(std::string_view bytes) {
    while (!bytes.empty()) {
        const Character character = first_character(bytes);
        if (!character.valid) return false;
        bytes.remove_prefix(character.bytes);
    }
    return true;
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stop_strings) {
    for (size_t n = 0; n < stop_strings.size(); n++) {
        std::string& text = stop_strings[n];
        if (text.empty())
            fail(ErrorCode::invalid_argument, "stop string ", n,
                 " is empty: it would stop before the first token; leave it out");
        if (!is_utf8(text)) fail(ErrorCode::invalid_argument, "stop string ", n, " is not UTF-8");
        std::vector<size_t> border(text.size(), 0);
        for (size_t i = 1, length = 0; i < text.size(); i++) {
            while (length > 0 && text[i] != text[length]) length = border[length - 1];
            if (text[i] == text[length]) length++;
            border[i] = length;
        }
        stops_.push_back({std::move(text), std::move(border), 0});
    }
}

std::string TextStream::push(std::string_view bytes) {
    if (stopped_) return {};
    pending_ += bytes;
    std::string_view rest = pending_;
    while (!rest.empty() && !stopped_) {
        const Character character = first_character(rest);
        if (!character.complete) break;
        append(character.valid ? rest.substr(0, character.bytes) : kReplacement);
        rest.remove_prefix(character.bytes);
    }
    pending_.erase(0, pending_.size() - rest.size());
    // Bytes that a stop string may begin with stay here; append() has removed a whole one already.
    size_t held = 0;
    if (!stopped_)
        for (const Stop& stop : stops_) held = std::max(held, stop.matched);
    std::string certain = text_.substr(0, text_.size() - held);
    text_.erase(0, certain.size());
    return certain;
}

std::string TextStream::finish() {
    if (stopped_) return {};
    if (!pending_.empty()) append(kReplacement);  // one maximal subpart: the beginning of a character
    pending_.clear();
    return std::move(text_);
}

void TextStream::append(std::string_view character) {
    text_ += character;
    size_t longest = 0;
    for (Stop& stop : stops_) {
        for (const char byte : character) {
            while (stop.matched > 0 && byte != stop.text[stop.matched]) stop.matched = stop.border[stop.matched - 1];
            if (byte == stop.text[stop.matched]) stop.matched++;
            if (stop.matched == stop.text.size()) break;  // a stop is whole characters: this was the last byte of one
        }
        if (stop.matched == stop.text.size()) longest = std::max(longest, stop.matched);
    }
    if (longest == 0) return;
    stopped_ = true;
    text_.resize(text_.size() - longest);
}

}  // namespace halfbyte
