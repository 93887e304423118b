// A file mapped read-only into memory, or bytes that stand for one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace halfbyte {

class MappedFile {
public:
    /// Errors: not_found (no such file), io (a directory, no permission, cannot be mapped). An empty file maps to size 0.
    static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
    /// Bytes of somebody else that stand for a file of this name: they are neither copied nor kept alive.
    static std::shared_ptr<const MappedFile> borrow(std::filesystem::path name, std::span<const uint8_t> bytes);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }
    const std::filesystem::path& path() const { return path_; }
    bool is_mapped() const { return mapped_; }  ///< false for borrowed bytes

private:
    MappedFile(std::filesystem::path path, const uint8_t* data, size_t size, bool mapped);
    std::filesystem::path path_;
    const uint8_t* data_;
    size_t size_;
    bool mapped_;
};

}  // namespace halfbyte
