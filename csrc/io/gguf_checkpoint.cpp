// A GGUF file as a Checkpoint: its "<architecture>.*" metadata is the config.
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/utf8.h"
#include "io/config_value.h"
#include "io/ggml_types.h"
#include "io/gguf.h"
#include "io/tensors.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

template <class T>
T load(const uint8_t* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

/// One element of fixed size, number `index`.
json element(GgufType type, const uint8_t* data, uint64_t index) {
    switch (type) {
        case GgufType::u8: return load<uint8_t>(data + index);
        case GgufType::i8: return load<int8_t>(data + index);
        case GgufType::u16: return load<uint16_t>(data + 2 * index);
        case GgufType::i16: return load<int16_t>(data + 2 * index);
        case GgufType::u32: return load<uint32_t>(data + 4 * index);
        case GgufType::i32: return load<int32_t>(data + 4 * index);
        case GgufType::f32: return double(load<float>(data + 4 * index));
        case GgufType::boolean: return load<uint8_t>(data + index) != 0;
        case GgufType::u64: return load<uint64_t>(data + 8 * index);
        case GgufType::i64: return load<int64_t>(data + 8 * index);
        case GgufType::f64: return load<double>(data + 8 * index);
        case GgufType::string:
        case GgufType::array: break;
    }
    return nullptr;
}

json to_json(const GgufValue& value) {
    if (value.type == GgufType::string) return std::string(value.text());
    if (value.type != GgufType::array) return element(value.type, value.data, 0);
    json list = json::array();
    if (value.element == GgufType::string) {
        for (const std::string_view text : value.texts()) list.push_back(std::string(text));
    } else {
        for (uint64_t i = 0; i < value.count; i++) list.push_back(element(value.element, value.data, i));
    }
    return list;
}

/// A string under `key`; empty if absent.
std::string text_of(const GgufFile& file, std::string_view key) {
    const GgufValue* value = file.find(key);
    if (value == nullptr) return "";
    if (value->type != GgufType::string) fail(ErrorCode::corrupt, file.where(), ": ", key, " must be a string");
    if (first_invalid_utf8(value->text()) != std::string_view::npos) {
        fail(ErrorCode::corrupt, file.where(), ": ", key, " is not UTF-8");
    }
    return std::string(value->text());
}

Config make_config(const GgufFile& file) {
    auto document = std::make_shared<Config::Value>();
    document->gguf_architecture = text_of(file, "general.architecture");
    if (text_of(file, "general.type") == "adapter") {
        fail(ErrorCode::unsupported, file.where(),
             ": this is an adapter, not a model: load its base model, then the adapter");
    }
    if (document->gguf_architecture.empty()) fail(ErrorCode::corrupt, file.where(), ": general.architecture is missing");
    if (const GgufValue* split = file.find("split.count"); split != nullptr) {
        const json count = to_json(*split);
        if (!count.is_number_integer()) fail(ErrorCode::corrupt, file.where(), ": split.count must be an integer");
        if (count > 1) {
            fail(ErrorCode::unsupported, file.where(), ": one of ", count.dump(),
                 " parts of a split model; join them into one file first (llama-gguf-split --merge)");
        }
    }
    const std::string prefix = document->gguf_architecture + ".";
    for (const std::string& key : file.keys()) {
        if (key.starts_with(prefix)) document->fields[key.substr(prefix.size())] = to_json(*file.find(key));
    }
    return Config(file.where(), true, std::move(document));
}

const Storage* storage_of(uint32_t type) {
    switch (type) {
        case 0: return &float_storage(DType::f32);
        case 1: return &float_storage(DType::f16);
        case 2: return &q4_0_storage();
        case 3: return &q4_1_storage();
        case 8: return &q8_0_storage();
        case 30: return &float_storage(DType::bf16);
        default: return nullptr;
    }
}

const GgufTensor& require(const GgufFile& file, std::string_view name) {
    const auto found = file.tensors().find(name);
    if (found == file.tensors().end()) fail(ErrorCode::not_found, file.where(), ": there is no tensor ", name);
    return found->second;
}

}  // namespace

GgufCheckpoint::GgufCheckpoint(const std::filesystem::path& path)
    : Checkpoint(path), file_(GgufFile::open(path)), config_(make_config(file_)) {
    for (const auto& [name, tensor] : file_.tensors()) names_.push_back(name);
}

std::vector<int64_t> GgufCheckpoint::shape(std::string_view name) const { return require(file_, name).shape; }

Weight GgufCheckpoint::weight(std::string_view name) const {
    const GgufTensor& tensor = require(file_, name);
    const std::string where = concat(file_.where(), ": tensor ", name);
    Weight weight;
    weight.storage = storage_of(tensor.type);
    if (weight.storage == nullptr) {
        fail(ErrorCode::unsupported, where, ": type ", find_ggml_type(tensor.type)->name,
             " is not supported; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1");
    }
    const MatrixShape shape = matrix_shape(tensor.shape, where);
    weight.rows = shape.rows;
    weight.cols = shape.cols;
    weight.block_size = weight.storage->kind() == StorageKind::floating ? 0 : 32;
    weight.planes[0] = tensor.bytes;  // the format's alignment is at least 8
    weight.storage->validate(weight, where);
    return weight;
}

std::string GgufCheckpoint::metadata_json() const {
    ordered_json all = ordered_json::object();
    for (const std::string& key : file_.keys()) {
        const GgufValue& value = *file_.find(key);
        if (value.type == GgufType::array && value.count > kMaxArray) continue;
        all[key] = to_json(value);
    }
    return all.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace halfbyte
