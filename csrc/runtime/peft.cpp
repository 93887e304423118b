#include "runtime/peft.h"

#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/safetensors.h"
#include "runtime/lora_config.h"

namespace halfbyte {

namespace {

struct Pair {
    const SafetensorsEntry *a = nullptr, *b = nullptr;
};

// "base_model.model.<module>.lora_A.weight" -> <module>, and which half it is.
struct TensorName {
    std::string module;
    bool is_a;
};

std::optional<TensorName> parse_name(std::string_view name) {
    constexpr std::string_view kPrefix = "base_model.model.", kA = ".lora_A.weight", kB = ".lora_B.weight";
    if (!name.starts_with(kPrefix)) return std::nullopt;
    name.remove_prefix(kPrefix.size());
    if (name.ends_with(kA)) return TensorName{std::string(name.substr(0, name.size() - kA.size())), true};
    if (name.ends_with(kB)) return TensorName{std::string(name.substr(0, name.size() - kB.size())), false};
    return std::nullopt;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (const int64_t size : shape) text.append(text.size() > 1 ? ", " : "").append(std::to_string(size));
    return text + "]";
}

void check_factor(const std::string& where, const SafetensorsEntry& entry, int64_t rows, int64_t cols, const char* meaning) {
    if (entry.dtype != DType::f32 && entry.dtype != DType::f16 && entry.dtype != DType::bf16) {
        fail(ErrorCode::unsupported, where, " has dtype ", name_of(entry.dtype), "; expected float32, float16 or bfloat16");
    }
    if (entry.shape.size() != 2 || entry.shape[0] != rows || entry.shape[1] != cols) {
        fail(ErrorCode::corrupt, where, " has shape ", shape_text(entry.shape), ", expected [", rows, ", ", cols, "] (",
             meaning, "); the adapter was trained on another model");
    }
}

}  // namespace

std::shared_ptr<const Adapter> read_peft_adapter(const std::filesystem::path& folder, std::string name, const Model& model,
                                                 Device& device) {
    const std::filesystem::path file = folder / "adapter_model.safetensors";
    const std::filesystem::path config_path = folder / "adapter_config.json";
    const LoraConfig config(read_text_file(config_path), config_path.string());
    if (!std::filesystem::exists(file) && std::filesystem::exists(folder / "adapter_model.bin")) {
        fail_pickle(folder / "adapter_model.bin", "adapter_model.safetensors");
    }
    return bind_peft_adapter(config, MappedFile::open(file), std::move(name), model, device);
}

std::shared_ptr<const Adapter> bind_peft_adapter(const LoraConfig& config, const std::shared_ptr<const MappedFile>& mapped,
                                                 std::string name, const Model& model, Device& device) {
    const auto tensors = parse_safetensors(mapped);
    const std::filesystem::path& file = mapped->path();
    std::map<std::string, Pair> pairs;
    for (const auto& [tensor, entry] : tensors) {
        const std::optional<TensorName> parsed = parse_name(tensor);
        if (!parsed) {
            fail(ErrorCode::unsupported, file.string(), ": the tensor '", tensor,
                 "' is not the A or B of a linear layer; halfbyte does not apply it yet, and without it the adapter would "
                 "give other answers");
        }
        Pair& pair = pairs[parsed->module];
        (parsed->is_a ? pair.a : pair.b) = &entry;
    }
    if (pairs.empty()) fail(ErrorCode::corrupt, file.string(), ": there are no lora_A and lora_B tensors in it");

    std::unordered_map<std::string_view, int> module_index;
    for (size_t i = 0; i < model.modules().size(); i++) {
        module_index.emplace(model.modules()[i].base_name, int(i));
        module_index.emplace(model.modules()[i].name, int(i));
    }
    std::vector<LoraFactors> by_module(model.modules().size());
    for (const auto& [module_name, pair] : pairs) {
        const std::string where = concat(file.string(), ": '", module_name, "'");
        if (pair.a == nullptr || pair.b == nullptr) {
            fail(ErrorCode::corrupt, where, " has lora_", pair.a == nullptr ? "B but no lora_A" : "A but no lora_B",
                 "; the file is incomplete");
        }
        const auto found = module_index.find(module_name);
        if (found == module_index.end()) {
            if (model.unused(module_name + ".weight")) continue;
            fail(ErrorCode::unsupported, where, " is not a linear layer of this ", model.info().architecture,
                 " model; the adapter was trained on another model, or on a part that halfbyte does not adapt yet");
        }
        const Module& module = model.modules()[size_t(found->second)];
        const int64_t rank = pair.a->shape.empty() ? 0 : pair.a->shape[0];
        if (rank <= 0)
            fail(ErrorCode::corrupt, where, ": lora_A has shape ", shape_text(pair.a->shape), ", expected [r, in]");
        check_factor(where + " lora_A", *pair.a, rank, module.in_features, "[r, in]");
        check_factor(where + " lora_B", *pair.b, module.out_features, rank, "[out, r]");

        LoraFactors& factors = by_module[size_t(found->second)];
        if (factors.rank > 0) fail(ErrorCode::corrupt, where, " is adapted twice, under two names of the same layer");
        factors = device.upload_lora({.a = pair.a->bytes.data,
                                      .b = pair.b->bytes.data,
                                      .a_dtype = pair.a->dtype,
                                      .b_dtype = pair.b->dtype,
                                      .rank = rank,
                                      .in = module.in_features,
                                      .out = module.out_features,
                                      .scale = config.scale(module_name, rank)});
    }
    return std::make_shared<const Adapter>(std::move(name), std::move(by_module));
}

}  // namespace halfbyte
