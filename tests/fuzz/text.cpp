// The bytes of tokens as text, with stop strings. Input: stop strings, each ended by a NUL, an empty one last; then the bytes of
// tokens, each behind a byte that says how many there are.
#include "runtime/text.h"

#include "core/utf8.h"
#include "fuzz.h"

using halfbyte::TextStream;

namespace {

/// Everything that a stream shows of `bytes`, given in pieces as `lengths` says.
std::string shown(const std::vector<std::string>& stops, const std::vector<std::string_view>& pieces, bool& stopped) {
    TextStream stream(stops);
    std::string text;
    for (const std::string_view piece : pieces) {
        const std::string part = stream.push(piece);
        fuzz::require(halfbyte::first_invalid_utf8(part) == std::string_view::npos);
        text += part;
    }
    text += stream.finish();
    stopped = stream.stopped();
    return text;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    fuzz::Bytes rest(data, size);
    std::vector<std::string> stops;
    while (stops.size() < 8) {
        const std::string_view stop = fuzz::take_text(rest);
        if (stop.empty()) break;
        stops.emplace_back(stop);
    }
    std::vector<std::string_view> pieces, single;
    while (!rest.empty()) {
        const size_t length = std::min<size_t>(rest[0], rest.size() - 1);
        pieces.push_back(fuzz::text_of(rest.subspan(1, length)));
        for (size_t i = 0; i < length; i++) single.push_back(pieces.back().substr(i, 1));
        rest = rest.subspan(1 + length);
    }
    fuzz::run([&] {
        bool stopped = false, stopped_singly = false;
        const std::string text = shown(stops, pieces, stopped);
        fuzz::require(halfbyte::first_invalid_utf8(text) == std::string_view::npos);
        // How the bytes were cut into tokens must not be seen.
        fuzz::require(text == shown(stops, single, stopped_singly) && stopped == stopped_singly);
        for (const std::string& stop : stops) fuzz::require(text.find(stop) == std::string::npos);
    });
    return 0;
}
