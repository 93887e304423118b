#include "io/json.h"

#include <string>
#include <vector>

#include "core/error.h"

namespace halfbyte {

namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;

/// Builds the document event by event: the library's own builder keeps the last of two equal keys in silence.
class Builder : public json::json_sax_t {
public:
    json root;
    std::string error;

    bool null() override { return add(json(nullptr)); }
    bool boolean(bool value) override { return add(json(value)); }
    bool number_integer(number_integer_t value) override { return add(json(value)); }
    bool number_unsigned(number_unsigned_t value) override { return add(json(value)); }
    bool number_float(number_float_t value, const string_t&) override { return add(json(value)); }
    bool string(string_t& value) override { return add(json(std::move(value))); }
    bool binary(binary_t&) override { return false; }  // never comes from text

    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        if (open_.back()->contains(name)) {
            error = concat("the key \"", name, "\" appears twice in one object");
            return false;
        }
        key_ = std::move(name);
        return true;
    }

    bool parse_error(std::size_t, const std::string&, const json::exception& problem) override {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."; it may quote bytes that are not UTF-8.
        std::string text = problem.what();
        if (const size_t end = text.find("] "); end != std::string::npos) text.erase(0, end + 2);
        for (char& c : text)
            if (static_cast<unsigned char>(c) >= 0x80) c = '?';
        error = "not valid JSON: " + text;
        return false;
    }

private:
    bool add(json value) {
        place(std::move(value));
        return true;
    }
    json* place(json value) {
        if (open_.empty()) {
            root = std::move(value);
            return &root;
        }
        if (open_.back()->is_array()) {
            open_.back()->push_back(std::move(value));
            return &open_.back()->back();
        }
        return &((*open_.back())[key_] = std::move(value));
    }
    bool open(json value) {
        if (open_.size() == kMaxDepth) {
            error = concat("nested deeper than ", kMaxDepth, " levels");
            return false;
        }
        // Addresses on the stack stay valid: only the innermost container grows.
        open_.push_back(place(std::move(value)));
        return true;
    }
    bool close() {
        open_.pop_back();
        return true;
    }

    std::vector<json*> open_;
    std::string key_;
};

}  // namespace

json parse_json(std::string_view text, std::string_view where) {
    // The library takes a NUL for the end of the text and would not see what follows.
    if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
        fail(ErrorCode::corrupt, where, ": not valid JSON: a NUL at byte ", nul);
    }
    Builder builder;
    if (!json::sax_parse(text.begin(), text.end(), &builder)) fail(ErrorCode::corrupt, where, ": ", builder.error);
    return std::move(builder.root);
}

}  // namespace halfbyte
