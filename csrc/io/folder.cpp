#include "io/folder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "io/config_value.h"
#include "io/json.h"
#include "io/tensors.h"

namespace halfbyte {

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// quant_method; "" where there is none.
std::string quantization_method(const json& settings) {
    if (!settings.is_object()) return "";
    const auto method = settings.find("quant_method");
    return method != settings.end() && method->is_string() ? method->get<std::string>() : "";
}

bool is_fp8(std::string_view method) { return method == "fp8" || method == "fbgemm_fp8" || method == "compressed-tensors"; }

/// compressed-tensors holds many formats; "float-quantized" is E4M3 weights with scales of floats.
void check_compressed(const json& settings, const std::string& where) {
    const json format = settings.value("format", json());
    if (format == "float-quantized" || format == "naive-quantized") return;
    fail(ErrorCode::unsupported, where, ": quantization_config.format is ",
         format.dump(-1, ' ', true, json::error_handler_t::replace),
         R"(; of compressed-tensors halfbyte reads "float-quantized")");
}

class FolderCheckpoint final : public Checkpoint {
public:
    FolderCheckpoint(fs::path path, Config config, std::string config_text, TensorMap tensors, std::string where)
        : Checkpoint(std::move(path)),
          config_(std::move(config)),
          config_text_(std::move(config_text)),
          plain_(std::move(tensors)),
          where_(std::move(where)) {
        take_quantized();
        for (const auto& [name, entry] : plain_) names_.push_back(name);
        for (const auto& [name, entry] : quantized_) names_.push_back(name);
        std::sort(names_.begin(), names_.end());
    }

    std::string_view format() const override { return format_; }
    const Config& config() const override { return config_; }
    const std::vector<std::string>& names() const override { return names_; }
    bool contains(std::string_view name) const override {
        return plain_.find(name) != plain_.end() || quantized_.find(name) != quantized_.end();
    }
    std::vector<int64_t> shape(std::string_view name) const override {
        if (const auto found = quantized_.find(name); found != quantized_.end()) return found->second.shape;
        return plain(name).shape;
    }
    Weight weight(std::string_view name) const override {
        if (const auto found = quantized_.find(name); found != quantized_.end()) return found->second.weight;
        return float_weight(plain(name), concat(where_, ": tensor ", name));
    }
    std::string metadata_json() const override { return config_text_; }

private:
    const SafetensorsEntry& plain(std::string_view name) const {
        const auto found = plain_.find(name);
        if (found == plain_.end()) fail(ErrorCode::not_found, where_, ": there is no tensor ", name);
        return found->second;
    }

    /// Finds what belongs together, as quantization_config says; without one, as the tensors do.
    void take_quantized() {
        const std::string config_where = concat(config_.where(), ": quantization_config");
        const json document = parse_json(config_text_, config_.where());
        const json settings = document.value("quantization_config", json());
        const std::string method = quantization_method(settings);
        if (method == "gptq" || method == "awq") {
            quantized_ = (method == "gptq" ? take_gptq : take_awq)(plain_, settings, where_, config_where);
            format_ = method;
            return;
        }
        quantized_ = take_bitsandbytes(plain_, where_);
        if (!quantized_.empty()) format_ = "bitsandbytes";
        check_bitsandbytes(quantized_, settings, where_, config_where);
        QuantizedMap floats = take_fp8(plain_, is_fp8(method) ? settings : json(), where_, config_where);
        if (!floats.empty()) format_ = "fp8";
        quantized_.merge(floats);
    }

    Config config_;
    std::string config_text_;
    std::string format_ = "safetensors";
    TensorMap plain_;
    QuantizedMap quantized_;
    std::vector<std::string> names_;
    std::string where_;
};

/// Shards beside `index_path` (model.safetensors.index.json: {"weight_map": {tensor: file}}), all of their tensors.
TensorMap read_sharded(const fs::path& index_path) {
    const std::string where = index_path.string();
    const json index = parse_json(read_text_file(index_path), where);
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
        fail(ErrorCode::corrupt, where, ": expected an object \"weight_map\" from tensors to files");
    }
    std::map<std::string, TensorMap> shards;
    for (const auto& [tensor, value] : map->items()) {
        if (!value.is_string()) fail(ErrorCode::corrupt, where, ": weight_map[\"", tensor, "\"] must be a file name");
        const auto file = value.get<std::string>();
        // A name in this folder and nothing else: an index must not reach for other files of the machine.
        const bool plain = file == fs::path(file).filename().string() && file.find('\0') == std::string::npos;
        if (file.empty() || !plain || file == "." || file == "..") {
            fail(ErrorCode::corrupt, where, ": weight_map[\"", tensor, "\"] = \"", file,
                 "\" is not the name of a file in this folder");
        }
        if (!file.ends_with(".safetensors")) fail_pickle(index_path.parent_path() / file);
        auto shard = shards.find(file);
        if (shard == shards.end()) {
            const fs::path path = index_path.parent_path() / file;
            if (!fs::exists(path)) fail(ErrorCode::not_found, where, ": the shard ", file, " is missing from the folder");
            shard = shards.emplace(file, read_safetensors(path)).first;
        }
        if (!shard->second.contains(tensor)) {
            fail(ErrorCode::corrupt, where, ": tensor ", tensor, " should be in ", file, ", which does not have it");
        }
    }
    TensorMap tensors;
    for (auto& [file, shard] : shards) {
        for (auto& [name, entry] : shard) {
            const auto place = map->find(name);
            if (place == map->end()) {
                fail(ErrorCode::corrupt, where, ": tensor ", name, " of ", file, " is not in weight_map");
            }
            if (place->get_ref<const std::string&>() != file) {
                fail(ErrorCode::corrupt, where, ": tensor ", name, " is in ", file, ", and weight_map says ", place->dump());
            }
            tensors.emplace(name, std::move(entry));
        }
    }
    return tensors;
}

/// What halfbyte cannot run whatever the tensors are. Otherwise the tensors are trusted over the config.
void check_quantization(const json& config, const std::string& where) {
    const auto found = config.find("quantization_config");
    if (found == config.end() || found->is_null()) return;
    if (!found->is_object())
        fail(ErrorCode::corrupt, where, ": quantization_config must be an object, found ", found->dump());
    const auto method = found->find("quant_method");
    // Files of the first versions have no quant_method: only bitsandbytes existed.
    const std::string name = quantization_method(*found);
    if (method != found->end() && name != "bitsandbytes" && name != "gptq" && name != "awq" && !is_fp8(name)) {
        fail(
            ErrorCode::unsupported, where, ": quantization_config.quant_method is ",
            method->dump(-1, ' ', true, json::error_handler_t::replace),
            R"(; halfbyte reads "bitsandbytes", "gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors" of 8-bit floats and )"
            "float weights");
    }
    if (name == "compressed-tensors") check_compressed(*found, where);
    if (method == found->end() && !found->contains("load_in_4bit") && !found->contains("load_in_8bit")) {
        fail(ErrorCode::unsupported, where, ": quantization_config names no quant_method");
    }
}

/// The name of a file in the folder that explains why there is no model.safetensors; empty if none does.
std::string first_with_extension(const fs::path& folder, std::initializer_list<std::string_view> extensions) {
    std::vector<std::string> found;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
        const std::string extension = entry.path().extension().string();
        if (std::find(extensions.begin(), extensions.end(), extension) != extensions.end()) {
            found.push_back(entry.path().filename().string());
        }
    }
    return found.empty() ? "" : *std::min_element(found.begin(), found.end());
}

[[noreturn]] void fail_no_tensors(const fs::path& folder) {
    const std::string where = folder.string();
    if (fs::exists(folder / "adapter_config.json")) {
        fail(ErrorCode::unsupported, where, ": this is a PEFT adapter, not a model: load its base model, then the adapter");
    }
    for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
        if (fs::exists(folder / pickle)) fail_pickle(folder / "pytorch_model.bin");
    }
    if (const std::string gguf = first_with_extension(folder, {".gguf"}); !gguf.empty()) {
        fail(ErrorCode::not_found, where, ": no model.safetensors here, but ", gguf, ": open that file itself");
    }
    if (const std::string other = first_with_extension(folder, {".safetensors"}); !other.empty()) {
        fail(ErrorCode::not_found, where, ": neither model.safetensors nor model.safetensors.index.json; there is ", other,
             ": open that file itself if it is the model");
    }
    if (const std::string pickle = first_with_extension(folder, {".bin", ".pt", ".pth"}); !pickle.empty()) {
        fail_pickle(folder / pickle);
    }
    fail(ErrorCode::not_found, where,
         ": neither model.safetensors nor model.safetensors.index.json; a checkpoint folder needs one");
}

}  // namespace

void fail_pickle(const fs::path& path, std::string_view converted) {
    fail(ErrorCode::unsupported, path.string(),
         ": a pickle can run any code when it is read, so halfbyte does not. Convert it once, where torch and safetensors "
         "are "
         "installed: python -c \"import torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in "
         "torch.load('",
         path.filename().string(), "', map_location='cpu', weights_only=True).items()}, '", converted,
         "', {'format': 'pt'})\"");
}

std::unique_ptr<Checkpoint> open_folder_checkpoint(const fs::path& path) {
    const bool is_folder = fs::is_directory(path);
    const fs::path folder = is_folder ? path : path.parent_path();
    const fs::path single = is_folder ? path / "model.safetensors" : path;
    const fs::path index = path / "model.safetensors.index.json";
    const bool sharded = is_folder && !fs::exists(single) && fs::exists(index);
    if (is_folder && !sharded && !fs::exists(single)) fail_no_tensors(path);

    const fs::path config_path = folder / "config.json";
    if (!fs::exists(config_path)) {
        fail(ErrorCode::not_found, config_path.string(),
             ": missing; a safetensors checkpoint needs its config.json beside it");
    }
    std::string text = read_text_file(config_path);
    Config config = parse_config(config_path, text);
    TensorMap tensors = sharded ? read_sharded(index) : read_safetensors(single);
    return make_folder_checkpoint(path, std::move(config), std::move(text), std::move(tensors),
                                  (sharded ? index : single).string());
}

Config parse_config(const fs::path& path, const std::string& text) {
    auto document = std::make_shared<Config::Value>();
    document->fields = parse_json(text, path.string());
    Config config(path.string(), false, document);
    check_quantization(document->fields, path.string());
    return config;
}

std::unique_ptr<Checkpoint> make_folder_checkpoint(const fs::path& path, Config config, std::string config_text,
                                                   TensorMap tensors, std::string where) {
    return std::make_unique<FolderCheckpoint>(path, std::move(config), std::move(config_text), std::move(tensors),
                                              std::move(where));
}

}  // namespace halfbyte
