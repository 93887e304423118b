#include "io/gguf_weights.h"

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "io/json.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using nlohmann::json;

constexpr uint32_t kF32 = 0, kI8 = 24;  // ggml's numbers of tensor types
constexpr int64_t kVersion = 1;

using Part = CombinedPart;

}  // namespace

std::vector<CombinedPart> combined_parts(const std::string& storage, bool nested, const Storage*& found) {
    const uint32_t scale = nested ? kI8 : kF32;
    std::vector<Part> parts;
    if (storage == "nf4" || storage == "fp4") {
        found = storage == "nf4" ? &nf4_storage() : &fp4_storage();
        parts = {{kBnb4Codes, "codes", kI8}, {kBnb4Absmax, "absmax", scale}, {kBnb4Map, "quant_map", kF32}};
        if (nested) parts.push_back({kBnb4NestedAbsmax, "nested_absmax", kF32});
        if (nested) parts.push_back({kBnb4NestedMap, "nested_quant_map", kF32});
    } else if (storage == "nf4_panels" || storage == "fp4_panels") {
        found = storage == "nf4_panels" ? &nf4_panels_storage() : &fp4_panels_storage();
        parts = {{kBnb4PanelsCodes, "codes", kI8},
                 {kBnb4PanelsScales, "absmax", scale},
                 {kBnb4PanelsMaps, "maps", kF32},
                 {kBnb4PanelsPlaces, "places", kI8}};
        if (nested) parts.push_back({kBnb4PanelsNested, "nested_absmax", kF32});
    } else if (storage == "int8" && !nested) {
        found = &int8_storage();
        parts = {{kInt8Levels, "levels", kI8}, {kInt8Scales, "scales", kF32}};
    } else if (storage == "int8_rows" && !nested) {
        found = &int8_rows_storage();
        parts = {{kInt8RowsLevels, "levels", kI8}, {kInt8RowsScb, "SCB", kF32}};
    }
    return parts;
}

namespace {

int64_t integer(const json& entry, const char* key, int64_t least, int64_t most, std::string_view where) {
    const auto found = entry.find(key);
    const bool good = found != entry.end() && found->is_number_integer() &&
                      !(found->is_number_unsigned() && found->get<uint64_t>() > uint64_t(most));
    const int64_t value = good ? found->get<int64_t>() : -1;
    if (!good || value < least || value > most) {
        fail(ErrorCode::corrupt, where, ": \"", key, "\" must be an integer from ", least, " to ", most, ", found ",
             found == entry.end() ? "nothing" : found->dump());
    }
    return value;
}

CombinedWeight combine(const GgufFile& file, const std::string& name, const json& entry) {
    const std::string where = concat(file.where(), ": halfbyte.weights: ", name);
    if (!entry.is_object()) fail(ErrorCode::corrupt, where, ": must be an object, found ", entry.dump());
    const std::string storage = entry.value("storage", json()).is_string() ? entry["storage"].get<std::string>() : "";
    const bool nested = entry.contains("nested_block");
    constexpr int64_t kMost = int64_t(1) << 40;
    CombinedWeight result;
    Weight& weight = result.weight;
    const std::vector<Part> parts = combined_parts(storage, nested, weight.storage);
    if (parts.empty()) {
        fail(ErrorCode::unsupported, where, ": storage \"", storage,
             "\" is not known to this build of halfbyte; it may come from a later one");
    }
    weight.rows = integer(entry, "rows", 1, kMost, where), weight.cols = integer(entry, "cols", 1, kMost, where);
    weight.block_size = int32_t(integer(entry, "block", 1, 1 << 20, where));
    if (nested) {
        weight.nested_block_size = int32_t(integer(entry, "nested_block", 1, 1 << 20, where));
    }
    const auto take = [&](const char* suffix, uint32_t type) -> const Plane& {
        const std::string tensor = name + "." + suffix;
        const auto found = file.tensors().find(tensor);
        if (found == file.tensors().end()) fail(ErrorCode::corrupt, where, ": the tensor ", tensor, " is missing");
        if (found->second.type != type) {
            fail(ErrorCode::corrupt, where, ": the tensor ", tensor, " has type ", found->second.type, ", expected ",
                 type == kI8 ? "I8 (24)" : "F32 (0)");
        }
        result.parts.push_back(tensor);
        return found->second.bytes;
    };
    for (const Part& part : parts) weight.planes[size_t(part.plane)] = take(part.suffix, part.type);
    if (nested) {
        const Plane& offset = take("nested_offset", kF32);
        if (offset.bytes != sizeof(float)) fail(ErrorCode::corrupt, where, ": nested_offset must be one number");
        weight.nested_offset = offset.as<float>()[0];
    }
    weight.storage->validate(weight, where);
    result.shape = {weight.rows, weight.cols};
    return result;
}

}  // namespace

std::map<std::string, CombinedWeight, std::less<>> combined_weights(const GgufFile& file) {
    std::map<std::string, CombinedWeight, std::less<>> all;
    const GgufValue* value = file.find("halfbyte.weights");
    if (value == nullptr) return all;
    const std::string where = concat(file.where(), ": halfbyte.weights");
    if (value->type != GgufType::string) fail(ErrorCode::corrupt, where, " must be a string");
    const json document = parse_json(value->text(), where);
    if (!document.is_object()) fail(ErrorCode::corrupt, where, ": must be an object, found ", document.type_name());
    if (const int64_t version = integer(document, "version", 1, 1 << 20, where); version != kVersion) {
        fail(ErrorCode::unsupported, where, ": version ", version, ", and this build of halfbyte reads version ", kVersion,
             "; install a later one");
    }
    const auto weights = document.find("weights");
    if (weights == document.end() || !weights->is_object())
        fail(ErrorCode::corrupt, where, ": \"weights\" must be an object");
    for (const auto& [name, entry] : weights->items()) {
        if (file.tensors().contains(name)) fail(ErrorCode::corrupt, where, ": ", name, " is the name of a tensor too");
        all.emplace(name, combine(file, name, entry));
    }
    return all;
}

}  // namespace halfbyte
