#include "check.h"
#include "runtime/text.h"

using check::error_of;
using halfbyte::TextStream;

namespace {

std::string stream(const std::string& bytes, std::vector<std::string> stop, size_t piece) {
    TextStream text(std::move(stop));
    std::string shown;
    for (size_t i = 0; i < bytes.size(); i += piece) shown += text.push(bytes.substr(i, piece));
    return shown + text.finish();
}

}  // namespace

TEST(characters_straddle_tokens) {
    const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";  // 1, 2, 3 and 4 bytes
    for (size_t piece = 1; piece <= text.size(); piece++) CHECK(stream(text, {}, piece) == text);
}

TEST(bytes_that_are_no_text_become_replacement_characters) {
    const std::string r = "\xef\xbf\xbd";
    for (size_t piece = 1; piece < 5; piece++) {
        CHECK(stream("a\xff\x80z", {}, piece) == "a" + r + r + "z");
        CHECK(stream("\xe2\x82z", {}, piece) == r + "z");               // one for the beginning of a character
        CHECK(stream("\xed\xa0\x80", {}, piece) == r + r + r);          // a surrogate
        CHECK(stream("\xf0\x9f\x98", {}, piece) == r);                  // cut off at the end
        CHECK(stream("\xc0\x80\xf5\x80", {}, piece) == r + r + r + r);  // over-long; beyond U+10FFFF
    }
}

TEST(stop_strings_straddle_tokens) {
    for (size_t piece = 1; piece < 9; piece++) {
        CHECK(stream("one\n\ntwo", {"\n\n"}, piece) == "one");
        CHECK(stream("aaab", {"aab"}, piece) == "a");
        CHECK(stream("xxabcd", {"abcd", "bc"}, piece) == "xxa");
        CHECK(stream("xxabcd", {"bc", "abc"}, piece) == "xx");
        CHECK(stream("caf\xc3\xa9!", {"\xc3\xa9"}, piece) == "caf");
        CHECK(stream("no end", {"end."}, piece) == "no end");
    }
}

TEST(no_more_than_needed_is_held_back) {
    TextStream text({"</s>"});
    CHECK(text.push("a<") == "a");
    CHECK(text.push("b") == "<b");
    CHECK(text.push("</s") == "");
    CHECK(!text.stopped());
    CHECK(text.push(">") == "");
    CHECK(text.stopped());
    CHECK(text.push("more") == "" && text.finish() == "");
}

TEST(wrong_stop_strings_are_refused) {
    CHECK(check::contains(error_of([] { TextStream({"a", ""}); }), "stop string 1 is empty"));
    CHECK(check::contains(error_of([] { TextStream({"\xff"}); }), "stop string 0 is not UTF-8"));
}
