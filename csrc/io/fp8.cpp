// 8-bit float layers of a folder (E4M3) and the scales beside them.
#include <algorithm>
#include <limits>

#include "core/error.h"
#include "io/json.h"
#include "io/tensors.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using nlohmann::json;

std::string shown(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

/// What a scale of `layer` is for: of its elements, [rows, cols] at a time.
struct Scales {
    Plane plane;  // float32
    int64_t rows, cols;
};

Scales scales_of(const SafetensorsEntry& entry, const std::string& name, const MatrixShape& shape,
                 std::optional<std::pair<int64_t, int64_t>> block, std::string_view where) {
    const MatrixShape found = matrix_shape(entry.shape, where);
    const int64_t count = found.rows * found.cols;
    const Weight values = float_weight(entry, concat(where, ": ", name));
    Scales scales{allocate_plane(size_t(count) * sizeof(float)), shape.rows, shape.cols};
    decode(values, static_cast<float*>(const_cast<void*>(scales.plane.data)));
    if (block) {
        scales.rows = block->first, scales.cols = block->second;
        const int64_t rows = (shape.rows + scales.rows - 1) / scales.rows,
                      cols = (shape.cols + scales.cols - 1) / scales.cols;
        if (found.rows == rows && found.cols == cols) return scales;
        fail(ErrorCode::corrupt, where, ": ", name, " has shape ", shape_text(entry.shape), ", expected [", rows, ", ", cols,
             "]: one for each block of [", scales.rows, ", ", scales.cols, "]");
    }
    if (count == 1) return scales;  // one for the whole matrix
    if (count == shape.rows) {      // one for each output
        scales.rows = 1;
        return scales;
    }
    fail(ErrorCode::corrupt, where, ": ", name, " has shape ", shape_text(entry.shape),
         ", expected one scale, or one for each of ", shape.rows, " rows");
}

/// weight_block_size of FineGrainedFP8Config: [rows, cols]; null: a scale for a matrix or a row.
std::optional<std::pair<int64_t, int64_t>> block_of(const json& config, const std::string& where) {
    const auto found = config.is_object() ? config.find("weight_block_size") : config.end();
    if (!config.is_object() || found == config.end() || found->is_null()) return std::nullopt;
    const auto size = [&](const json& value) {
        if (!value.is_number_unsigned() || value == 0 ||
            value.get<uint64_t>() > uint64_t(std::numeric_limits<int32_t>::max()))
            fail(ErrorCode::corrupt, where, ": weight_block_size is ", shown(*found), ", expected two sizes");
        return value.get<int64_t>();
    };
    if (!found->is_array() || found->size() != 2)
        fail(ErrorCode::corrupt, where, ": weight_block_size is ", shown(*found), ", expected two sizes");
    return std::pair(size((*found)[0]), size((*found)[1]));
}

}  // namespace

QuantizedMap take_fp8(TensorMap& tensors, const json& config, std::string_view where, const std::string& config_where) {
    const auto block = block_of(config, config_where);
    std::vector<std::string> names;
    for (const auto& [name, entry] : tensors)
        if (entry.dtype == DType::f8_e4m3) names.push_back(name);
    QuantizedMap weights;
    for (const std::string& name : names) {
        const std::string layer = name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
        const std::string at = concat(where, ": tensor ", name);
        const SafetensorsEntry entry = tensors.find(name)->second;
        const MatrixShape shape = matrix_shape(entry.shape, at);
        if (shape.cols < 1 || shape.cols > std::numeric_limits<int32_t>::max() ||
            shape.rows > std::numeric_limits<int32_t>::max())
            fail(ErrorCode::corrupt, at, ": impossible shape ", shape_text(entry.shape));
        Scales scales{{}, std::max<int64_t>(shape.rows, 1), shape.cols};
        // The word of the fine-grained config is the inverse of the scale that was divided by: what decoding multiplies by.
        for (const char* suffix : {".weight_scale_inv", ".weight_scale"}) {
            const auto found = tensors.find(layer + suffix);
            if (found == tensors.end()) continue;
            if (scales.plane) fail(ErrorCode::corrupt, at, " has a weight_scale and a weight_scale_inv");
            scales = scales_of(found->second, layer + suffix, shape, block, at);
            tensors.erase(found);
        }
        if (!scales.plane) {
            if (config.is_object())
                fail(ErrorCode::corrupt, at, " is ", name_of(entry.dtype), ", and there is no scale for it (", layer,
                     ".weight_scale_inv or .weight_scale)");
            scales.plane = allocate_plane(sizeof(float));
            *static_cast<float*>(const_cast<void*>(scales.plane.data)) = 1;
        }
        // Scales of activations, which are not rounded here.
        for (const char* suffix : {".input_scale", ".activation_scale", ".input_scale_ub"}) tensors.erase(layer + suffix);
        QuantizedWeight result;
        result.shape = entry.shape;
        result.weight.storage = &fp8_storage();
        result.weight.rows = shape.rows, result.weight.cols = shape.cols;
        result.weight.block_size = int32_t(scales.cols), result.weight.nested_block_size = int32_t(scales.rows);
        result.weight.planes[kFp8Bytes] = entry.bytes;
        result.weight.planes[kFp8Scales] = scales.plane;
        result.weight.storage->validate(result.weight, at);
        tensors.erase(name);
        weights.emplace(name, std::move(result));
    }
    return weights;
}

}  // namespace halfbyte
