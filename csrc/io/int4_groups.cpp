// GPTQ and AWQ layers of a folder: which tensors belong together, and what the config says they mean.
#include <algorithm>
#include <limits>

#include "core/error.h"
#include "io/json.h"
#include "io/tensors.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

using nlohmann::json;

constexpr std::string_view kCodes = ".qweight";

std::string shown(const json& value) { return value.dump(-1, ' ', true, json::error_handler_t::replace); }

/// One quantization_config, read for the fields that decide what the tensors mean. The others tell how they were made.
class GroupConfig {
public:
    GroupConfig(const json& config, std::string where) : config_(config), where_(std::move(where)) {
        const json bits = field("bits", "w_bit");
        if (bits != 4) fail(ErrorCode::unsupported, where_, ": bits is ", shown(bits), "; halfbyte reads 4");
        const json group = field("group_size", "q_group_size");
        if (!group.is_number_integer() || group == 0 || group.get<double>() < -1 ||
            group.get<double>() > double(std::numeric_limits<int32_t>::max()))
            fail(ErrorCode::corrupt, where_, ": group_size is ", shown(group), "; expected -1 or a number of inputs");
        group_size = group.get<int64_t>();
    }

    json field(const char* name, const char* other = nullptr) const {
        if (const auto found = config_.find(name); found != config_.end()) return *found;
        if (other == nullptr) return {};
        const auto found = config_.find(other);
        return found == config_.end() ? json() : *found;
    }
    std::string text(const char* name, const char* otherwise) const {
        const json value = field(name);
        if (value.is_null()) return otherwise;
        if (!value.is_string()) fail(ErrorCode::corrupt, where_, ": ", name, " must be a text, found ", shown(value));
        return value.get<std::string>();
    }
    bool is_on(const char* name) const {
        const json value = field(name);
        return !value.is_null() && value != false && !((value.is_object() || value.is_array()) && value.empty());
    }
    /// Errors: unsupported, with the value.
    [[noreturn]] void refuse(const char* name, std::string_view reads) const {
        fail(ErrorCode::unsupported, where_, ": ", name, " is ", shown(field(name)), "; halfbyte reads ", reads);
    }

    int64_t group_size = 0;  ///< -1: all inputs

private:
    const json& config_;
    std::string where_;
};

const SafetensorsEntry& part(const TensorMap& tensors, const std::string& name, std::string_view where) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) fail(ErrorCode::corrupt, where, ": the tensor ", name, " is missing");
    return found->second;
}

void check_part(const SafetensorsEntry& entry, const std::string& name, std::vector<int64_t> shape, std::string_view where) {
    if (entry.dtype == DType::i32 && entry.shape == shape) return;
    fail(ErrorCode::corrupt, where, ": ", name, " is ", name_of(entry.dtype), " ", shape_text(entry.shape),
         ", expected int32 ", shape_text(shape));
}

/// Scales as float32: they are a fiftieth of the codes, and of whatever float type.
Plane float_plane(const SafetensorsEntry& entry, const std::string& name, std::vector<int64_t> shape,
                  std::string_view where) {
    if (entry.shape != shape)
        fail(ErrorCode::corrupt, where, ": ", name, " has shape ", shape_text(entry.shape), ", expected ",
             shape_text(shape));
    const Weight scales = float_weight(entry, concat(where, ": ", name));
    Plane plane = allocate_plane(size_t(scales.size()) * sizeof(float));
    decode(scales, static_cast<float*>(const_cast<void*>(plane.data)));
    return plane;
}

/// Inputs of a group are neighbours: input i is of group i / size. With activation order (desc_act) they need not be.
void check_order(const SafetensorsEntry& entry, const std::string& name, int64_t in, int64_t size, std::string_view where) {
    check_part(entry, name, {in}, where);
    const Plane plane = aligned(entry.bytes, sizeof(int32_t));
    for (int64_t i = 0; i < in; i++) {
        if (plane.as<int32_t>()[i] == i / size) continue;
        fail(ErrorCode::unsupported, where, ": ", name, " says that input ", i, " is of group ", plane.as<int32_t>()[i],
             ", expected ", i / size,
             ": the layer was quantised in activation order (desc_act), which halfbyte does not "
             "run; quantise the model with desc_act=False, or convert it to floats with the package that made it");
    }
}

struct Layout {
    const Codebook4* storage;
    bool along_inputs;  // eight codes of an int32 are eight inputs (GPTQ), or eight outputs (AWQ)
};

QuantizedWeight take_layer(TensorMap& tensors, const std::string& layer, const GroupConfig& config, const Layout& layout,
                           std::string_view file) {
    const std::string where = concat(file, ": layer ", layer), codes = layer + ".qweight", zeros = layer + ".qzeros",
                      scales = layer + ".scales", order = layer + ".g_idx";
    const SafetensorsEntry qweight = part(tensors, codes, where);
    if (qweight.dtype != DType::i32 || qweight.shape.size() != 2 || qweight.shape[0] < 1 || qweight.shape[1] < 1 ||
        qweight.shape[0] > int64_t(1) << 40 || qweight.shape[1] > int64_t(1) << 40)
        fail(ErrorCode::corrupt, where, ": ", codes, " is ", name_of(qweight.dtype), " ", shape_text(qweight.shape),
             ", expected a matrix of int32");
    const int64_t in = qweight.shape[0] * (layout.along_inputs ? 8 : 1),
                  out = qweight.shape[1] * (layout.along_inputs ? 1 : 8);
    const int64_t size = config.group_size < 0 ? in : config.group_size, groups = (in + size - 1) / size;
    if (in > std::numeric_limits<int32_t>::max() || out % 8 != 0)
        fail(ErrorCode::corrupt, where, ": ", in, " inputs and ", out, " outputs; expected a multiple of 8 of them");

    QuantizedWeight result;
    result.shape = {out, in};
    Weight& weight = result.weight;
    weight.storage = layout.storage;
    weight.rows = out, weight.cols = in, weight.block_size = int32_t(std::min(size, in));
    const SafetensorsEntry& qzeros = part(tensors, zeros, where);
    check_part(qzeros, zeros, {groups, out / 8}, where);
    weight.planes[kInt4Codes] = qweight.bytes;
    weight.planes[kInt4Zeros] = qzeros.bytes;
    weight.planes[kInt4Scales] = float_plane(part(tensors, scales, where), scales, {groups, out}, where);
    if (const auto found = tensors.find(order); found != tensors.end()) {
        check_order(found->second, order, in, size, where);
        tensors.erase(found);
    }
    for (const std::string& name : {codes, zeros, scales}) tensors.erase(name);
    weight.storage->validate(weight, where);
    return result;
}

QuantizedMap take_layers(TensorMap& tensors, const GroupConfig& config, const Layout& layout, std::string_view where) {
    std::vector<std::string> layers;
    for (const auto& [name, entry] : tensors)
        if (name.ends_with(kCodes)) layers.push_back(name.substr(0, name.size() - kCodes.size()));
    if (layers.empty())
        fail(ErrorCode::corrupt, where, ": quantization_config says that layers are quantised, and no tensor ends with ",
             kCodes);
    QuantizedMap weights;
    for (const std::string& layer : layers) {
        if (tensors.contains(layer + ".weight"))
            fail(ErrorCode::corrupt, where, ": layer ", layer, " has a weight and a qweight");
        weights.emplace(layer + ".weight", take_layer(tensors, layer, config, layout, where));
        // Some versions save a bias of zeros for layers that have none; the model decides whether it wants one.
    }
    return weights;
}

}  // namespace

QuantizedMap take_gptq(TensorMap& tensors, const json& fields, std::string_view where, const std::string& config_where) {
    const GroupConfig config(fields, config_where);
    const std::string format = config.text("checkpoint_format", config.text("format", "gptq").c_str());
    for (const char* name : {"rotation", "adapter", "activation"})
        if (config.is_on(name)) config.refuse(name, "layers without it");
    if (format != "gptq" && format != "gptq_v2")
        config.refuse(config.field("checkpoint_format").is_null() ? "format" : "checkpoint_format",
                      R"("gptq" and "gptq_v2")");
    if (config.text("pack_dtype", "int32") != "int32") config.refuse("pack_dtype", R"("int32")");
    if (config.is_on("is_marlin_format")) config.refuse("is_marlin_format", "the layout of GPTQ itself");
    if (config.is_on("dynamic")) config.refuse("dynamic", "one setting for all layers");
    return take_layers(tensors, config, {format == "gptq" ? &gptq_storage() : &gptq_v2_storage(), true}, where);
}

QuantizedMap take_awq(TensorMap& tensors, const json& fields, std::string_view where, const std::string& config_where) {
    const GroupConfig config(fields, config_where);
    for (const char* name : {"format", "checkpoint_format"})
        if (config.text(name, "gemm") != "gemm") config.refuse(name, R"("gemm")");
    if (config.text("backend", "autoawq") == "llm-awq") config.refuse("backend", R"("autoawq")");
    std::string version = config.text("version", "gemm");
    std::transform(version.begin(), version.end(), version.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    if (version != "gemm") config.refuse("version", R"("gemm")");
    if (const json zero = config.field("zero_point"); !zero.is_null() && zero != true)
        config.refuse("zero_point", "layers with zero points");
    return take_layers(tensors, config, {&awq_storage(), false}, where);
}

}  // namespace halfbyte
