// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>

namespace halfbyte {

class MappedFile {
public:
    /// Errors: not_found (no such file), io (a directory, no permission, cannot be mapped). An empty file maps to size 0.
    static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    const std::filesystem::path& path() const { return path_; }

private:
    MappedFile(std::filesystem::path path, const uint8_t* data, size_t size);
    std::filesystem::path path_;
    const uint8_t* data_;
    size_t size_;
};

}  // namespace halfbyte
