#include "io/gguf.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/utf8.h"
#include "io/ggml_types.h"
#include "io/tensors.h"

namespace halfbyte {

size_t value_size(GgufType type) {
    switch (type) {
        case GgufType::u8:
        case GgufType::i8:
        case GgufType::boolean: return 1;
        case GgufType::u16:
        case GgufType::i16: return 2;
        case GgufType::u32:
        case GgufType::i32:
        case GgufType::f32: return 4;
        case GgufType::u64:
        case GgufType::i64:
        case GgufType::f64: return 8;
        case GgufType::string:
        case GgufType::array: return 0;
    }
    return 0;
}

/// Walks the file once. Everything it takes is checked against what is left.
class GgufParser {
public:
    explicit GgufParser(GgufFile& file) : out_(file), data_(file.file_->data()), size_(file.file_->size()) {}

    void parse() {
        if (size_ < 4 || std::memcmp(data_, "GGUF", 4) != 0) corrupt("not a GGUF file: it does not begin with \"GGUF\"");
        position_ = 4;
        const auto version = take<uint32_t>("the version");
        if (version != 2 && version != 3) {
            fail(ErrorCode::unsupported, out_.where_, ": GGUF version ", version,
                 (version & 0xffffu) == 0 ? " (a big-endian file)" : "", "; expected 2 or 3, little-endian");
        }
        const auto tensors = take<uint64_t>("the number of tensors");
        const auto values = take<uint64_t>("the number of metadata values");
        // The smallest of each: an empty name and one byte; an empty name, no dimensions, a type and an offset.
        check_count(values, 8 + 4 + 1, "metadata values");
        check_count(tensors, 8 + 4 + 4 + 8, "tensors");
        for (uint64_t i = 0; i < values; i++) parse_value();
        read_alignment();
        for (uint64_t i = 0; i < tensors; i++) parse_tensor();
        place_tensors();
    }

private:
    struct Pending {
        const std::string* name;
        GgufTensor* tensor;
        uint64_t offset, bytes;
    };

    template <class... Parts>
    [[noreturn]] void corrupt(const Parts&... parts) const {
        fail(ErrorCode::corrupt, out_.where_, ": ", parts...);
    }
    uint64_t left() const { return size_ - position_; }
    void need(uint64_t bytes, std::string_view what) const {
        if (bytes > left()) {
            corrupt("the file ends within ", what, ": ", bytes, " bytes needed at byte ", position_, ", ", left(), " left");
        }
    }
    void check_count(uint64_t count, uint64_t smallest, std::string_view what) const {
        if (count > left() / smallest) {
            corrupt("it claims ", count, " ", what, ", which do not fit in the ", left(), " bytes left");
        }
    }
    template <class T>
    T take(std::string_view what) {
        need(sizeof(T), what);
        T value;
        std::memcpy(&value, data_ + position_, sizeof value);
        position_ += sizeof value;
        return value;
    }
    std::string_view take_string(std::string_view what) {
        const auto length = take<uint64_t>(what);
        need(length, what);
        const std::string_view text(reinterpret_cast<const char*>(data_ + position_), size_t(length));
        position_ += length;
        return text;
    }
    /// A key or a tensor's name: it will be part of error texts and of Python strings.
    std::string take_name(std::string_view what) {
        const uint64_t start = position_;
        const std::string_view text = take_string(what);
        if (first_invalid_utf8(text) != std::string_view::npos) corrupt(what, " at byte ", start, " is not UTF-8");
        return std::string(text);
    }
    GgufType take_type(const std::string& key) {
        const auto number = take<uint32_t>(key);
        if (number > uint32_t(GgufType::f64)) corrupt("the value of ", key, " has type ", number, ", which does not exist");
        return GgufType(number);
    }
    void check_booleans(const std::string& key, const uint8_t* bytes, uint64_t count) const {
        for (uint64_t i = 0; i < count; i++)
            if (bytes[i] > 1) corrupt("the value of ", key, " must be 0 or 1, found ", int(bytes[i]));
    }

    void parse_value() {
        std::string key = take_name("the name of a metadata value");
        GgufValue value;
        value.type = take_type(key);
        if (value.type == GgufType::string) {
            const std::string_view text = take_string(key);
            value.count = text.size();
            value.data = reinterpret_cast<const uint8_t*>(text.data());
        } else if (value.type == GgufType::array) {
            value.element = take_type(key);
            value.count = take<uint64_t>(key);
            if (value.element == GgufType::array) {
                fail(ErrorCode::unsupported, out_.where_, ": the value of ", key, " is an array of arrays");
            }
            const size_t size = value_size(value.element);
            check_count(value.count, size == 0 ? sizeof(uint64_t) : size, concat("elements of ", key));
            value.data = data_ + position_;
            if (value.element == GgufType::string) {
                for (uint64_t i = 0; i < value.count; i++) take_string(key);
            } else {
                position_ += value.count * size;
            }
            if (value.element == GgufType::boolean) check_booleans(key, value.data, value.count);
        } else {
            need(value_size(value.type), key);
            value.data = data_ + position_;
            value.count = 1;
            position_ += value_size(value.type);
            if (value.type == GgufType::boolean) check_booleans(key, value.data, 1);
        }
        if (!out_.metadata_.emplace(key, value).second) corrupt("the metadata value ", key, " appears twice");
        out_.keys_.push_back(std::move(key));
    }

    void read_alignment() {
        const GgufValue* value = out_.find("general.alignment");
        if (value == nullptr) return;
        if (value->type != GgufType::u32) corrupt("general.alignment must be a uint32");
        std::memcpy(&alignment_, value->data, sizeof alignment_);
        if (alignment_ < 8 || (alignment_ & (alignment_ - 1)) != 0) {
            corrupt("general.alignment is ", alignment_, ", expected a power of two of at least 8");
        }
    }

    void parse_tensor() {
        const std::string name = take_name("the name of a tensor");
        const std::string what = concat("tensor ", name);
        const auto dimensions = take<uint32_t>(what);
        if (dimensions > 4) corrupt(what, " has ", dimensions, " dimensions, the format has at most 4");
        GgufTensor tensor;
        uint64_t elements = 1;
        for (uint32_t i = 0; i < dimensions; i++) {
            const auto size = take<uint64_t>(what);
            if (size > uint64_t(INT64_MAX) || __builtin_mul_overflow(elements, size, &elements)) {
                corrupt(what, ": its dimensions overflow");
            }
            tensor.shape.insert(tensor.shape.begin(), int64_t(size));
        }
        tensor.type = take<uint32_t>(what);
        const GgmlType* type = find_ggml_type(tensor.type);
        if (type == nullptr) {
            fail(ErrorCode::unsupported, out_.where_, ": ", what, " has the ggml type ", tensor.type,
                 ", which this version does not know");
        }
        if (!tensor.shape.empty() && tensor.shape.back() % type->block != 0) {
            corrupt(what, ": rows of ", tensor.shape.back(), " elements are not whole blocks of ", type->block, " (",
                    type->name, ")");
        }
        uint64_t bytes = 0;
        if (__builtin_mul_overflow(elements / type->block, uint64_t(type->bytes), &bytes)) {
            corrupt(what, ": its dimensions overflow");
        }
        const auto offset = take<uint64_t>(what);
        if (offset % alignment_ != 0) corrupt(what, ": its offset ", offset, " is not a multiple of ", alignment_);
        const auto [place, inserted] = out_.tensors_.emplace(name, std::move(tensor));
        if (!inserted) corrupt(what, " appears twice");
        pending_.push_back({&place->first, &place->second, offset, bytes});
    }

    void place_tensors() {
        const uint64_t start = (position_ + alignment_ - 1) / alignment_ * alignment_;
        const uint64_t room = start > size_ ? 0 : size_ - start;
        std::sort(pending_.begin(), pending_.end(), [](const Pending& a, const Pending& b) {
            return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
        });
        uint64_t end = 0;
        for (const Pending& item : pending_) {
            if (item.offset > room || item.bytes > room - item.offset) {
                corrupt("tensor ", *item.name, ": its ", item.bytes, " bytes at offset ", item.offset,
                        " are not within the ", room, " bytes of data that the file has; it may have been cut off");
            }
            if (item.offset < end) corrupt("tensor ", *item.name, ": its bytes overlap those of another tensor");
            end = item.offset + item.bytes;
            item.tensor->bytes = Plane{data_ + start + item.offset, size_t(item.bytes), out_.file_, out_.file_->is_mapped()};
        }
    }

    GgufFile& out_;
    const uint8_t* data_;
    uint64_t size_, position_ = 0;
    uint32_t alignment_ = 32;
    std::vector<Pending> pending_;
};

std::vector<std::string_view> GgufValue::texts() const {
    std::vector<std::string_view> result;
    result.reserve(size_t(count));
    const uint8_t* at = data;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t length;
        std::memcpy(&length, at, sizeof length);
        result.emplace_back(reinterpret_cast<const char*>(at) + sizeof length, size_t(length));
        at += sizeof length + length;
    }
    return result;
}

GgufFile GgufFile::open(const std::filesystem::path& path) { return parse(MappedFile::open(path)); }

GgufFile GgufFile::parse(std::shared_ptr<const MappedFile> file) {
    GgufFile result;
    result.where_ = file->path().string();
    result.file_ = std::move(file);
    GgufParser(result).parse();
    return result;
}

const GgufValue* GgufFile::find(std::string_view key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? nullptr : &found->second;
}

}  // namespace halfbyte
