#include "runtime/text.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/utf8.h"

namespace halfbyte {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

TextStream::TextStream(std::vector<std::string> stop_strings) {
    for (size_t n = 0; n < stop_strings.size(); n++) {
        std::string& text = stop_strings[n];
        if (text.empty())
            fail(ErrorCode::invalid_argument, "stop string ", n,
                 " is empty: it would stop before the first token; leave it out");
        if (first_invalid_utf8(text) != std::string_view::npos)
            fail(ErrorCode::invalid_argument, "stop string ", n, " is not UTF-8");
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
        const Utf8Character character = first_utf8_character(rest);
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
