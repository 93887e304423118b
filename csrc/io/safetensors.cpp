// The format: https://github.com/huggingface/safetensors (README, "Format"); what is refused follows its tensor.rs.
#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "core/error.h"
#include "io/json.h"

namespace halfbyte {

namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are used in place");

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation

DType dtype_from(const std::string& text, const std::string& where) {
    static constexpr std::pair<std::string_view, DType> kKnown[] = {
        {"F32", DType::f32}, {"F16", DType::f16}, {"BF16", DType::bf16},       {"F64", DType::f64},
        {"I8", DType::i8},   {"U8", DType::u8},   {"F8_E4M3", DType::f8_e4m3}, {"I16", DType::i16},
        {"I32", DType::i32}, {"I64", DType::i64}, {"BOOL", DType::boolean},
    };
    for (const auto& [name, dtype] : kKnown)
        if (name == text) return dtype;
    fail(ErrorCode::unsupported, where, ": dtype \"", text,
         "\" is not supported; expected F32, F16, BF16, F64, F8_E4M3, I8, U8, I16, I32, I64 or BOOL");
}

uint64_t to_unsigned(const json& value, const std::string& where, std::string_view what) {
    if (!value.is_number_unsigned()) fail(ErrorCode::corrupt, where, ": ", what, " must be a non-negative integer");
    return value.get<uint64_t>();
}

const json& field(const json& entry, const char* name, const std::string& where) {
    const auto found = entry.find(name);
    if (found == entry.end()) fail(ErrorCode::corrupt, where, ": the header has no \"", name, "\" for it");
    return *found;
}

struct Range {
    uint64_t begin = 0, end = 0;
    const std::string* name = nullptr;
};

}  // namespace

std::map<std::string, SafetensorsEntry, std::less<>> read_safetensors(const std::filesystem::path& path) {
    return parse_safetensors(MappedFile::open(path));
}

std::map<std::string, SafetensorsEntry, std::less<>> parse_safetensors(const std::shared_ptr<const MappedFile>& file) {
    const std::string where = file->path().string();
    uint64_t header_size = 0;
    if (file->size() < sizeof header_size) {
        fail(ErrorCode::corrupt, where, ": a safetensors file has at least 8 bytes, found ", file->size());
    }
    std::memcpy(&header_size, file->data(), sizeof header_size);
    const uint64_t rest = file->size() - sizeof header_size;
    if (header_size > kMaxHeader || header_size > rest) {
        fail(ErrorCode::corrupt, where, ": the header claims ", header_size, " bytes, the file has ", rest,
             " left (the limit is ", kMaxHeader, "); it is not a safetensors file, or it was cut off");
    }
    const std::string_view text(reinterpret_cast<const char*>(file->data()) + sizeof header_size, header_size);
    const json header = parse_json(text, concat(where, ": header"));
    if (!header.is_object()) fail(ErrorCode::corrupt, where, ": the header is not a JSON object");
    const uint8_t* data = file->data() + sizeof header_size + header_size;
    const uint64_t data_size = rest - header_size;

    std::map<std::string, SafetensorsEntry, std::less<>> entries;
    std::vector<Range> ranges;
    for (const auto& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;  // free text of the writer
        const std::string tensor = concat(where, ": tensor ", name);
        if (!entry.is_object()) fail(ErrorCode::corrupt, tensor, ": its header entry is not a JSON object");
        SafetensorsEntry result;
        const json& dtype = field(entry, "dtype", tensor);
        if (!dtype.is_string()) fail(ErrorCode::corrupt, tensor, ": dtype must be a name");
        result.dtype = dtype_from(dtype.get<std::string>(), tensor);
        const json& shape = field(entry, "shape", tensor);
        if (!shape.is_array()) fail(ErrorCode::corrupt, tensor, ": shape must be a list");
        uint64_t bytes = size_of(result.dtype);
        bool overflow = false;
        for (const json& dimension : shape) {
            const uint64_t size = to_unsigned(dimension, tensor, "every dimension of shape");
            overflow |= size > uint64_t(INT64_MAX) || __builtin_mul_overflow(bytes, size, &bytes);
            result.shape.push_back(int64_t(size));
        }
        if (overflow) fail(ErrorCode::corrupt, tensor, ": shape ", shape.dump(), " overflows");
        const json& offsets = field(entry, "data_offsets", tensor);
        if (!offsets.is_array() || offsets.size() != 2) {
            fail(ErrorCode::corrupt, tensor, ": data_offsets must be a list of two");
        }
        const uint64_t begin = to_unsigned(offsets[0], tensor, "data_offsets");
        const uint64_t end = to_unsigned(offsets[1], tensor, "data_offsets");
        if (begin > end || end > data_size) {
            fail(ErrorCode::corrupt, tensor, ": its bytes ", begin, " to ", end, " are not within the ", data_size,
                 " bytes of data that the file has");
        }
        if (end - begin != bytes) {
            fail(ErrorCode::corrupt, tensor, ": shape ", shape.dump(), " of ", dtype.get<std::string>(), " needs ", bytes,
                 " bytes, data_offsets give ", end - begin);
        }
        result.bytes = Plane{data + begin, size_t(bytes), file, file->is_mapped()};
        const auto [position, inserted] = entries.emplace(name, std::move(result));
        ranges.push_back({begin, end, &position->first});
    }

    // The tensors must tile the data: no overlap, no hole, nothing behind.
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& a, const Range& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    uint64_t expected = 0;
    for (const Range& range : ranges) {
        if (range.begin != expected) {
            fail(ErrorCode::corrupt, where, ": tensor ", *range.name, " begins at byte ", range.begin,
                 " of the data, expected ", expected, ": ",
                 range.begin < expected ? "it overlaps another" : "there is a hole before it");
        }
        expected = range.end;
    }
    if (expected != data_size) {
        fail(ErrorCode::corrupt, where, ": the tensors end at byte ", expected, " of the data, which has ", data_size);
    }
    return entries;
}

}  // namespace halfbyte
