#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace halfbyte {

namespace {

[[noreturn]] void fail_with_errno(const std::filesystem::path& path, std::string_view what, int number) {
    const bool missing = number == ENOENT || number == ENOTDIR;
    fail(missing ? ErrorCode::not_found : ErrorCode::io, path.string(), ": ", what, ": ", std::strerror(number));
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path path, const uint8_t* data, size_t size, bool mapped)
    : path_(std::move(path)), data_(data), size_(size), mapped_(mapped) {}

MappedFile::~MappedFile() {
    if (mapped_ && data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
    struct Descriptor {
        int fd;
        ~Descriptor() {
            if (fd >= 0) ::close(fd);
        }
    };
    // O_NONBLOCK: opening a named pipe must not wait for a writer.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.fd < 0) fail_with_errno(path, "cannot be opened", errno);
    struct stat status;
    if (fstat(file.fd, &status) != 0) fail_with_errno(path, "cannot be read", errno);
    if (S_ISDIR(status.st_mode)) fail(ErrorCode::io, path.string(), ": expected a file, found a folder");
    if (!S_ISREG(status.st_mode)) fail(ErrorCode::io, path.string(), ": expected a regular file (it is mapped into memory)");
    const size_t size = size_t(status.st_size);
    const uint8_t* data = nullptr;
    if (size > 0) {
        void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
        if (mapped == MAP_FAILED) fail_with_errno(path, "cannot be mapped into memory", errno);
        data = static_cast<const uint8_t*>(mapped);
    }
    try {
        return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size, true));
    } catch (...) {
        if (data != nullptr) munmap(const_cast<uint8_t*>(data), size);
        throw;
    }
}

std::shared_ptr<const MappedFile> MappedFile::borrow(std::filesystem::path name, std::span<const uint8_t> bytes) {
    return std::shared_ptr<const MappedFile>(new MappedFile(std::move(name), bytes.data(), bytes.size(), false));
}

}  // namespace halfbyte
