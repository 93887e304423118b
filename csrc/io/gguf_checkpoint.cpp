// A GGUF file as a Checkpoint: its "<architecture>.*" metadata is the config.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/utf8.h"
#include "io/config_value.h"
#include "io/ggml_types.h"
#include "io/gguf.h"
#include "io/gguf_weights.h"
#include "io/json.h"
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
    // halfbyte's own files keep the config.json that they were made from.
    if (const std::string text = text_of(file, "halfbyte.config"); !text.empty()) {
        const std::string where = concat(file.where(), ": halfbyte.config");
        document->fields = parse_json(text, where);
        return Config(where, false, std::move(document));
    }
    if (document->gguf_architecture.empty()) fail(ErrorCode::corrupt, file.where(), ": general.architecture is missing");
    const std::string prefix = document->gguf_architecture + ".";
    for (const std::string& key : file.keys()) {
        if (key.starts_with(prefix)) document->fields[key.substr(prefix.size())] = to_json(*file.find(key));
    }
    return Config(file.where(), true, std::move(document));
}

/// "Q4_0, Q4_1, ...": the types that can be read.
std::string readable_types() {
    std::string list;
    for (const GgmlType& type : ggml_types())
        if (type.storage != nullptr) list.append(list.empty() ? "" : ", ").append(type.name);
    return list;
}

/// The block formats have a version of their own; today's is 2, and those before it meant other values by the same bytes.
void check_quantization_version(const GgufFile& file) {
    const GgufValue* value = file.find("general.quantization_version");
    if (value == nullptr) return;
    const json version = to_json(*value);
    if (!version.is_number_integer() || version != 2) {
        fail(ErrorCode::unsupported, file.where(), ": general.quantization_version is ",
             version.dump(-1, ' ', true, json::error_handler_t::replace), ", expected 2");
    }
}

}  // namespace

GgufCheckpoint::GgufCheckpoint(const std::filesystem::path& path) : GgufCheckpoint(path, open_gguf_parts(path)) {}

GgufCheckpoint::GgufCheckpoint(const std::filesystem::path& path, std::vector<GgufFile> files)
    : Checkpoint(path), files_(std::move(files)), config_(make_config(files_.front())) {
    check_quantization_version(files_.front());
    for (const GgufFile& part : files_) {
        for (const auto& [name, tensor] : part.tensors()) {
            const auto [place, inserted] = tensors_.emplace(name, Located{&part, &tensor});
            if (!inserted) {
                fail(ErrorCode::corrupt, part.where(), ": tensor ", name, " is in ", place->second.file->where(), " too");
            }
        }
    }
    combined_ = combined_weights(files_.front());
    const std::string order = text_of(files_.front(), "halfbyte.row_order");
    reference_rows_ = order == "huggingface";
    if (!order.empty() && !reference_rows_)
        fail(ErrorCode::unsupported, file().where(), ": halfbyte.row_order is \"", order, "\", expected \"huggingface\"");
    std::set<std::string_view> parts;
    for (const auto& [name, combined] : combined_) {
        names_.push_back(name);
        parts.insert(combined.parts.begin(), combined.parts.end());
    }
    for (const auto& [name, located] : tensors_)
        if (!parts.contains(name)) names_.emplace_back(name);
    std::sort(names_.begin(), names_.end());
}

GgufCheckpoint::~GgufCheckpoint() = default;

bool GgufCheckpoint::contains(std::string_view name) const { return std::binary_search(names_.begin(), names_.end(), name); }

const GgufCheckpoint::Located& GgufCheckpoint::require(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail(ErrorCode::not_found, file().where(), ": there is no tensor ", name);
    return found->second;
}

std::vector<int64_t> GgufCheckpoint::shape(std::string_view name) const {
    if (const auto found = combined_.find(name); found != combined_.end()) return found->second.shape;
    return require(name).tensor->shape;
}

Weight GgufCheckpoint::weight(std::string_view name) const {
    if (const auto found = combined_.find(name); found != combined_.end()) return found->second.weight;
    const auto& [file, tensor] = require(name);
    const std::string where = concat(file->where(), ": tensor ", name);
    const GgmlType& type = *find_ggml_type(tensor->type);
    if (type.storage == nullptr) {
        fail(ErrorCode::unsupported, where, ": type ", type.name, " is not supported; expected one of ", readable_types());
    }
    const MatrixShape shape = matrix_shape(tensor->shape, where);
    Weight weight;
    weight.storage = type.storage();
    weight.rows = shape.rows;
    weight.cols = shape.cols;
    weight.block_size = weight.storage->block_size();
    weight.planes[0] = tensor->bytes;  // the format's alignment is at least 8
    weight.storage->validate(weight, where);
    return weight;
}

std::string GgufCheckpoint::metadata_json() const {
    // Keys differ: there is no need to look for each among those before it, which ordered_json does one by one.
    ordered_json all = ordered_json::object();
    auto& entries = static_cast<ordered_json::object_t::Container&>(all.get_ref<ordered_json::object_t&>());
    for (const std::string& key : file().keys()) {
        const GgufValue& value = *file().find(key);
        if (value.type == GgufType::array && value.count > kMaxArray) continue;
        entries.emplace_back(key, to_json(value));
    }
    return all.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace halfbyte
