// GGUF files, versions 2 and 3. Format: docs/gguf.md of the ggml repository; the oracle is the Python package `gguf`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "io/checkpoint.h"

namespace halfbyte {

/// The numbers that the file uses.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// Bytes of one value of fixed size; 0 for strings and arrays.
size_t value_size(GgufType type);

/// One metadata value, still in the mapped file.
struct GgufValue {
    GgufType type = GgufType::u8;
    GgufType element = GgufType::u8;  ///< arrays only; never array
    uint64_t count = 0;               ///< arrays: elements; strings: bytes
    const uint8_t* data = nullptr;    ///< the value, the characters, or the first element; unaligned, little-endian

    std::string_view text() const { return {reinterpret_cast<const char*>(data), size_t(count)}; }  ///< strings
    std::vector<std::string_view> texts() const;                                                    ///< arrays of strings
};

struct GgufTensor {
    uint32_t type = 0;           ///< ggml's number
    std::vector<int64_t> shape;  ///< the order of the reference: dimensions of the file turned round
    Plane bytes;
};

/// A mapped file, all of it checked: counts against the file's size before anything is allocated, every string, type,
/// offset. Errors of open(): not_found, io, corrupt, unsupported (another version or byte order, an unknown tensor type,
/// nested arrays).
class GgufFile {
public:
    static GgufFile open(const std::filesystem::path& path);
    static GgufFile parse(std::shared_ptr<const MappedFile> file);

    const std::string& where() const { return where_; }
    const std::vector<std::string>& keys() const { return keys_; }  ///< in the order of the file
    const GgufValue* find(std::string_view key) const;              ///< null if absent
    const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }

private:
    friend class GgufParser;
    std::string where_;
    std::shared_ptr<const MappedFile> file_;
    std::vector<std::string> keys_;
    std::map<std::string, GgufValue, std::less<>> metadata_;
    std::map<std::string, GgufTensor, std::less<>> tensors_;
};

/// The file at `path`; where it is one part of a split model ("NAME-00002-of-00003.gguf", split.count > 1), all of its parts in
/// order, whichever of them `path` names. The first holds the metadata. Errors: those of GgufFile::open; not_found (a part is
/// missing); unsupported (a part under another name); corrupt (parts that contradict each other).
std::vector<GgufFile> open_gguf_parts(const std::filesystem::path& path);

struct CombinedWeight;  // io/gguf_weights.h

/// A model in one GGUF file, or in the parts of a split one. Arrays longer than `kMaxArray` are left out of metadata_json().
class GgufCheckpoint final : public Checkpoint {
public:
    static constexpr uint64_t kMaxArray = 64;
    /// Errors: those of open_gguf_parts; corrupt (no general.architecture); unsupported (an adapter, quantised tensors of
    /// another version of the formats).
    explicit GgufCheckpoint(const std::filesystem::path& path);
    /// `files`: the parts in order, at least one; `path` is for errors.
    GgufCheckpoint(const std::filesystem::path& path, std::vector<GgufFile> files);
    ~GgufCheckpoint() override;

    const GgufFile& file() const { return files_.front(); }  ///< with all metadata
    std::string_view format() const override { return "gguf"; }
    const Config& config() const override { return config_; }
    const std::vector<std::string>& names() const override { return names_; }
    bool contains(std::string_view name) const override;
    std::vector<int64_t> shape(std::string_view name) const override;
    Weight weight(std::string_view name) const override;
    std::string metadata_json() const override;
    bool has_gguf_names() const override { return true; }
    bool has_reference_rows() const override { return reference_rows_; }

private:
    struct Located {
        const GgufFile* file;
        const GgufTensor* tensor;
    };
    const Located& require(std::string_view name) const;

    std::vector<GgufFile> files_;
    Config config_;
    std::map<std::string_view, Located> tensors_;  // names as files_ holds them
    std::map<std::string, CombinedWeight, std::less<>> combined_;
    std::vector<std::string> names_;
    bool reference_rows_ = false;
};

}  // namespace halfbyte
