// One .safetensors file: a JSON header of names, dtypes, shapes and offsets, then the bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/mapped_file.h"
#include "core/weight.h"

namespace halfbyte {

struct SafetensorsEntry {
    DType dtype;
    std::vector<int64_t> shape;
    Plane bytes;  ///< Keeps the mapping alive.
};

/// Maps the file and checks all of it: header length, JSON, dtypes, offsets in range, no overlap, no hole, sizes equal
/// shapes. Errors: not_found, io, corrupt, unsupported (an unknown dtype).
std::map<std::string, SafetensorsEntry, std::less<>> read_safetensors(const std::filesystem::path& path);
std::map<std::string, SafetensorsEntry, std::less<>> parse_safetensors(const std::shared_ptr<const MappedFile>& file);

}  // namespace halfbyte
