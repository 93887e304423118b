// Safetensors files whose header stays where it is: fuzzers rarely keep the length in front of it right.
#pragma once

#include <cstring>
#include <vector>

#include "fuzz.h"

namespace fuzz {

/// What stands before the first NUL is the header, what comes behind it the data; the length is put in front.
inline std::vector<uint8_t> safetensors_of(Bytes bytes) {
    const std::string_view header = take_text(bytes);
    std::vector<uint8_t> file(sizeof(uint64_t) + header.size() + bytes.size());
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, sizeof length);
    if (!header.empty()) std::memcpy(file.data() + sizeof length, header.data(), header.size());
    if (!bytes.empty()) std::memcpy(file.data() + sizeof length + header.size(), bytes.data(), bytes.size());
    return file;
}

}  // namespace fuzz
