// Split models: one GGUF file a part, as llama.cpp's gguf-split and the package gguf write them. Every part says its number
// (split.no, from 0), how many there are (split.count) and how many tensors they have together (split.tensors.count).
#include <cstdio>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "io/gguf.h"

namespace halfbyte {

namespace {

namespace fs = std::filesystem;

/// A whole number that is not negative, whatever its type; nothing if absent.
std::optional<uint64_t> whole_number(const GgufFile& file, std::string_view key) {
    const GgufValue* value = file.find(key);
    if (value == nullptr) return std::nullopt;
    int64_t number = -1;
    const auto take = [&]<class T>(T typed) {
        std::memcpy(&typed, value->data, sizeof typed);
        number = int64_t(typed);  // beyond the greatest int64_t: negative
    };
    switch (value->type) {
        case GgufType::u8: take(uint8_t()); break;
        case GgufType::i8: take(int8_t()); break;
        case GgufType::u16: take(uint16_t()); break;
        case GgufType::i16: take(int16_t()); break;
        case GgufType::u32: take(uint32_t()); break;
        case GgufType::i32: take(int32_t()); break;
        case GgufType::u64: take(uint64_t()); break;
        case GgufType::i64: take(int64_t()); break;
        default: break;
    }
    if (number < 0) fail(ErrorCode::corrupt, file.where(), ": ", key, " must be a whole number that is not negative");
    return uint64_t(number);
}

/// "-00002-of-00003.gguf" for the second of three.
std::string ending(uint64_t number, uint64_t count) {
    char text[64];
    std::snprintf(text, sizeof text, "-%05llu-of-%05llu.gguf", static_cast<unsigned long long>(number + 1),
                  static_cast<unsigned long long>(count));
    return text;
}

bool same_value(const GgufValue& a, const GgufValue& b) {
    if (a.type != b.type || a.element != b.element || a.count != b.count) return false;
    if (a.type == GgufType::string) return a.text() == b.text();
    if (a.type == GgufType::array && a.element == GgufType::string) return a.texts() == b.texts();
    const size_t size = value_size(a.type == GgufType::array ? a.element : a.type);
    return std::memcmp(a.data, b.data, size_t(a.count) * size) == 0;
}

/// What a later part says must be what the first says: nothing in it may be passed over.
void check_agreement(const GgufFile& first, const GgufFile& part, uint64_t number, uint64_t count) {
    const auto own_number = whole_number(part, "split.no"), own_count = whole_number(part, "split.count");
    if (own_count != count) {
        fail(ErrorCode::corrupt, part.where(), ": split.count is ", own_count.has_value() ? concat(*own_count) : "missing",
             ", and ", first.where(), " says ", count, "; they are parts of different models");
    }
    if (own_number != number) {
        fail(ErrorCode::corrupt, part.where(), ": split.no is ", own_number.has_value() ? concat(*own_number) : "missing",
             ", expected ", number, " in a file of this name");
    }
    for (const std::string& key : part.keys()) {
        if (key == "split.no" || key == "general.alignment") continue;  // of each file alone
        const GgufValue* common = first.find(key);
        if (common == nullptr || !same_value(*common, *part.find(key))) {
            fail(ErrorCode::corrupt, part.where(), ": ", key, " is not what ", first.where(),
                 " says; they are parts of different models");
        }
    }
}

}  // namespace

std::vector<GgufFile> open_gguf_parts(const fs::path& path) {
    std::vector<GgufFile> files;
    files.push_back(GgufFile::open(path));
    const uint64_t count = whole_number(files[0], "split.count").value_or(1);
    if (count <= 1) return files;

    const GgufFile named = std::move(files[0]);
    const auto number = whole_number(named, "split.no");
    if (!number.has_value() || *number >= count) {
        fail(ErrorCode::corrupt, named.where(), ": split.no is ", number.has_value() ? concat(*number) : "missing",
             ", expected 0 to ", count - 1, " of a model in ", count, " parts");
    }
    const std::string name = path.filename().string(), own = ending(*number, count);
    if (!name.ends_with(own)) {
        fail(ErrorCode::unsupported, named.where(), ": part ", *number + 1, " of ", count,
             " of a split model; its name must end with \"", own, "\" for the other parts to be found");
    }
    files.clear();
    uint64_t tensors = 0;
    for (uint64_t i = 0; i < count; i++) {
        const fs::path part = path.parent_path() / (name.substr(0, name.size() - own.size()) + ending(i, count));
        std::error_code ignored;
        if (i != *number && !fs::exists(part, ignored)) {
            fail(ErrorCode::not_found, named.where(), ": part ", i + 1, " of ", count, " is missing: there is no ",
                 part.string());
        }
        files.push_back(i == *number ? named : GgufFile::open(part));
        check_agreement(files.front(), files.back(), i, count);
        tensors += files.back().tensors().size();
    }
    const auto expected = whole_number(files.front(), "split.tensors.count");
    if (expected.has_value() && *expected != tensors) {
        fail(ErrorCode::corrupt, files.front().where(), ": split.tensors.count is ", *expected, ", and its ", count,
             " parts have ", tensors, " tensors");
    }
    return files;
}

}  // namespace halfbyte
