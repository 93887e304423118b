#include <algorithm>
#include <iterator>
#include <limits>

#include "core/error.h"
#include "io/json.h"
#include "io/tensors.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using nlohmann::json;

constexpr std::string_view kMarker = ".quant_state.bitsandbytes__";
constexpr std::string_view kScb = ".SCB";

/// The fields of one quant_state object, read strictly.
class QuantState {
public:
    QuantState(const SafetensorsEntry& entry, std::string where) : where_(std::move(where)) {
        if (entry.dtype != DType::u8) fail(ErrorCode::corrupt, where_, ": expected bytes, found ", name_of(entry.dtype));
        fields_ = parse_json({entry.bytes.as<char>(), entry.bytes.bytes}, where_);
        if (!fields_.is_object()) fail(ErrorCode::corrupt, where_, ": not a JSON object");
        static constexpr std::string_view kKnown[] = {"quant_type",       "blocksize",    "dtype",        "shape",
                                                      "nested_blocksize", "nested_dtype", "nested_offset"};
        for (const auto& [name, value] : fields_.items()) {
            if (std::find(std::begin(kKnown), std::end(kKnown), name) != std::end(kKnown)) continue;
            fail(ErrorCode::unsupported, where_, ": the field \"", name, "\" is not known to this version");
        }
    }

    const json& at(const char* name) const {
        const auto found = fields_.find(name);
        if (found == fields_.end()) fail(ErrorCode::corrupt, where_, ": the field \"", name, "\" is missing");
        return *found;
    }
    std::string text(const char* name) const {
        if (!at(name).is_string())
            fail(ErrorCode::corrupt, where_, ": \"", name, "\" must be a text, found ", at(name).dump());
        return at(name).get<std::string>();
    }
    int32_t size(const char* name) const {
        const json& value = at(name);
        if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t(std::numeric_limits<int32_t>::max())) {
            fail(ErrorCode::corrupt, where_, ": \"", name, "\" must be a size, found ", value.dump());
        }
        return value.get<int32_t>();
    }
    double number(const char* name) const {
        if (!at(name).is_number()) {
            fail(ErrorCode::corrupt, where_, ": \"", name, "\" must be a number, found ", at(name).dump());
        }
        return at(name).get<double>();
    }
    std::vector<int64_t> shape() const {
        const json& list = at("shape");
        std::vector<int64_t> result;
        bool good = list.is_array() && !list.empty();
        for (const json& item : list.is_array() ? list : json::array()) {
            good =
                good && item.is_number_unsigned() && item.get<uint64_t>() <= uint64_t(std::numeric_limits<int64_t>::max());
            if (good) result.push_back(item.get<int64_t>());
        }
        if (!good) fail(ErrorCode::corrupt, where_, ": \"shape\" must be a list of sizes, found ", list.dump());
        return result;
    }
    const std::string& where() const { return where_; }

private:
    std::string where_;
    json fields_;
};

/// Moves a part of the weight out of the map. Errors: corrupt where it is missing (unless optional) or has another dtype.
Plane take(TensorMap& tensors, const std::string& name, DType dtype, std::string_view where) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) fail(ErrorCode::corrupt, where, ": the tensor ", name, " is missing");
    if (found->second.dtype != dtype) {
        fail(ErrorCode::corrupt, where, ": ", name, " must be ", name_of(dtype), ", found ", name_of(found->second.dtype));
    }
    const Plane plane = aligned(found->second.bytes, size_of(dtype));
    tensors.erase(found);
    return plane;
}

QuantizedWeight take_weight(TensorMap& tensors, const std::string& name, const std::string& kind, std::string_view file) {
    const std::string where = concat(file, ": tensor ", name);
    const std::string state_name = concat(name, kMarker, kind);
    const auto entry = tensors.find(state_name);
    const QuantState state(entry->second, concat(file, ": ", state_name));
    tensors.erase(entry);

    QuantizedWeight result;
    Weight& weight = result.weight;
    if (kind != "nf4" && kind != "fp4") {
        fail(ErrorCode::unsupported, where, ": bitsandbytes quant_type \"", kind, "\"; expected nf4 or fp4");
    }
    if (state.text("quant_type") != kind) {
        fail(ErrorCode::corrupt, state.where(), ": quant_type is \"", state.text("quant_type"),
             "\", the tensor's name says ", kind);
    }
    weight.storage = kind == "nf4" ? &nf4_storage() : &fp4_storage();
    // The dtype that the weight had decides how bitsandbytes rounds the decoded values; float32 keeps them exactly.
    const std::string dtype = state.text("dtype");
    if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16") {
        fail(ErrorCode::corrupt, state.where(), ": dtype \"", dtype, "\", expected float32, float16 or bfloat16");
    }
    result.shape = state.shape();
    const MatrixShape shape = matrix_shape(result.shape, where);
    weight.rows = shape.rows;
    weight.cols = shape.cols;
    weight.block_size = state.size("blocksize");

    // The codes, in whatever dtype bnb_4bit_quant_storage gave them: only the bytes count.
    const auto codes = tensors.find(name);
    if (codes == tensors.end()) fail(ErrorCode::corrupt, where, ": it has a quant_state, but the tensor itself is missing");
    const SafetensorsEntry stored = codes->second;
    tensors.erase(codes);
    const uint64_t needed = (uint64_t(weight.rows) * uint64_t(weight.cols) + 1) / 2;
    if (stored.bytes.bytes != needed) {
        fail(ErrorCode::corrupt, where, ": quant_state says shape ", shape_text(result.shape), ", which needs ", needed,
             " bytes; found ", name_of(stored.dtype), " ", shape_text(stored.shape), ", ", stored.bytes.bytes, " bytes");
    }
    weight.planes[kBnb4Codes] = stored.bytes;
    result.stored = stored.dtype;
    weight.planes[kBnb4Map] = take(tensors, name + ".quant_map", DType::f32, where);
    if (tensors.contains(name + ".nested_absmax")) {
        weight.nested_block_size = state.size("nested_blocksize");
        weight.nested_offset = float(state.number("nested_offset"));
        if (state.text("nested_dtype") != "float32") {
            fail(ErrorCode::unsupported, state.where(), ": nested_dtype \"", state.text("nested_dtype"),
                 "\", expected float32");
        }
        if (weight.nested_block_size < 1) fail(ErrorCode::corrupt, state.where(), ": nested_blocksize must not be 0");
        weight.planes[kBnb4Absmax] = take(tensors, name + ".absmax", DType::u8, where);
        weight.planes[kBnb4NestedAbsmax] = take(tensors, name + ".nested_absmax", DType::f32, where);
        weight.planes[kBnb4NestedMap] = take(tensors, name + ".nested_quant_map", DType::f32, where);
    } else {
        weight.planes[kBnb4Absmax] = take(tensors, name + ".absmax", DType::f32, where);
    }
    weight.storage->validate(weight, where);
    return result;
}

/// LLM.int8(): `layer`.weight (int8 [out, in]), .SCB (float32 [out]), and in all but old files .weight_format (0: rows).
QuantizedWeight take_int8_rows(TensorMap& tensors, const std::string& layer, std::string_view file) {
    const std::string name = layer + ".weight", where = concat(file, ": tensor ", name);
    const auto levels = tensors.find(name);
    if (levels == tensors.end()) fail(ErrorCode::corrupt, where, ": it has an SCB, but the tensor itself is missing");
    QuantizedWeight result;
    result.shape = levels->second.shape;
    const MatrixShape shape = matrix_shape(result.shape, where);
    if (result.shape.size() != 2 || shape.cols < 1 || shape.cols > std::numeric_limits<int32_t>::max()) {
        fail(ErrorCode::corrupt, where, ": expected a matrix [out, in], found ", shape_text(result.shape));
    }
    if (const auto format = tensors.find(layer + ".weight_format"); format != tensors.end()) {
        const Plane number = take(tensors, layer + ".weight_format", DType::u8, where);
        if (number.bytes != 1 || *number.as<uint8_t>() != 0) {
            fail(ErrorCode::unsupported, where,
                 ": weight_format must be 0 (rows in order); the others are orders of a GPU that ",
                 "bitsandbytes does not read any more");
        }
    }
    Weight& weight = result.weight;
    weight.storage = &int8_rows_storage();
    weight.rows = shape.rows;
    weight.cols = shape.cols;
    weight.block_size = int32_t(shape.cols);
    weight.planes[kInt8RowsLevels] = take(tensors, name, DType::i8, where);
    weight.planes[kInt8RowsScb] = take(tensors, layer + std::string(kScb), DType::f32, where);
    weight.storage->validate(weight, where);
    return result;
}

}  // namespace

QuantizedMap take_bitsandbytes(TensorMap& tensors, std::string_view where) {
    std::vector<std::pair<std::string, std::string>> found;  // name, kind
    std::vector<std::string> rows;                           // layers of LLM.int8()
    for (const auto& [name, entry] : tensors) {
        if (name.ends_with(kScb)) rows.push_back(name.substr(0, name.size() - kScb.size()));
        const size_t marker = name.find(kMarker);
        if (marker != std::string::npos) found.emplace_back(name.substr(0, marker), name.substr(marker + kMarker.size()));
    }
    QuantizedMap weights;
    for (const auto& [name, kind] : found) {
        if (weights.contains(name)) fail(ErrorCode::corrupt, where, ": tensor ", name, " has two quant_states");
        weights.emplace(name, take_weight(tensors, name, kind, where));
    }
    for (const std::string& layer : rows) {
        const std::string name = layer + ".weight";
        if (weights.contains(name)) fail(ErrorCode::corrupt, where, ": tensor ", name, " has a quant_state and an SCB");
        weights.emplace(name, take_int8_rows(tensors, layer, where));
    }
    return weights;
}

void check_bitsandbytes(const QuantizedMap& weights, const json& config, std::string_view where,
                        const std::string& config_where) {
    if (!config.is_object()) return;
    const auto field = [&](const char* name) { return config.value(name, json()); };
    const auto differs = [&](const std::string& name, const char* what, const json& said, const std::string& found) {
        fail(ErrorCode::corrupt, where, ": tensor ", name, " ", found, ", and ", config_where, " says ", what, " = ",
             said.dump(-1, ' ', true, json::error_handler_t::replace), "; the two belong to different models");
    };
    const json type = field("bnb_4bit_quant_type"), nested = field("bnb_4bit_use_double_quant"),
               storage = field("bnb_4bit_quant_storage"), four = field("load_in_4bit"), eight = field("load_in_8bit");
    for (const auto& [name, quantized] : weights) {
        const Weight& weight = quantized.weight;
        if (weight.storage == &int8_rows_storage()) {
            if (four == true) differs(name, "load_in_4bit", four, "has 8 bits");
            continue;
        }
        if (eight == true) differs(name, "load_in_8bit", eight, "has 4 bits");
        if (type.is_string() && type != weight.storage->name())
            differs(name, "bnb_4bit_quant_type", type, concat("is ", weight.storage->name()));
        const bool is_nested = weight.nested_block_size != 0;
        if (nested.is_boolean() && nested != is_nested)
            differs(name, "bnb_4bit_use_double_quant", nested, is_nested ? "has scales of 8 bits" : "has plain scales");
        if (storage.is_string() && storage != name_of(quantized.stored))
            differs(name, "bnb_4bit_quant_storage", storage, concat("is stored as ", name_of(quantized.stored)));
    }
}

}  // namespace halfbyte
