// Writes tiny checkpoints into a folder: a Llama, a BERT, and LoRA adapters of the Llama. Weights are random with a fixed seed.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

namespace fs = std::filesystem;

namespace {

struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<float> values;
};

class Weights {
public:
    /// Uniform in (center - spread, center + spread).
    void add(const std::string& name, const std::vector<int64_t>& shape, float spread, float center = 0) {
        int64_t size = 1;
        for (const int64_t n : shape) size *= n;
        Tensor tensor{name, shape, {}};
        for (int64_t i = 0; i < size; i++) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
            tensor.values.push_back(center + spread * (float(state_ >> 40) * 0x1p-23f - 1));
        }
        tensors_.push_back(std::move(tensor));
    }
    void linear(const std::string& name, int64_t in, int64_t out, bool bias) {
        add(name + ".weight", {out, in}, 0.3f);
        if (bias) add(name + ".bias", {out}, 0.1f);
    }
    void norm(const std::string& name, int64_t dim, bool bias) {
        add(name + ".weight", {dim}, 0.2f, 1);
        if (bias) add(name + ".bias", {dim}, 0.1f);
    }
    /// One .safetensors file: the length of the header, the header, the bytes.
    void write(const fs::path& path) const {
        std::string header = "{";
        size_t offset = 0;
        for (const Tensor& tensor : tensors_) {
            std::string shape;
            for (const int64_t n : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
            const size_t end = offset + tensor.values.size() * sizeof(float);
            if (offset > 0) header += ",";
            header += "\"" + tensor.name + "\":{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[" +
                      std::to_string(offset) + "," + std::to_string(end) + "]}";
            offset = end;
        }
        header += "}";
        header.resize((header.size() + 7) / 8 * 8, ' ');
        std::ofstream file(path, std::ios::binary);
        const uint64_t length = header.size();
        file.write(reinterpret_cast<const char*>(&length), sizeof length);
        file << header;
        for (const Tensor& tensor : tensors_)
            file.write(reinterpret_cast<const char*>(tensor.values.data()),
                       std::streamsize(tensor.values.size() * sizeof(float)));
        file.close();
        if (!file) throw fs::filesystem_error("cannot write", path, std::make_error_code(std::errc::io_error));
    }

private:
    uint64_t state_ = 20240607;
    std::vector<Tensor> tensors_;
};

fs::path make_folder(const fs::path& path, const char* file, const std::string& json) {
    fs::create_directories(path);
    std::ofstream(path / file) << json;
    return path;
}

void make_llama(const fs::path& path) {
    make_folder(path, "config.json", R"({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 48,
        "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 600, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
        "tie_word_embeddings": false
    })");
    Weights weights;
    weights.add("model.embed_tokens.weight", {97, 48}, 1);
    for (int i = 0; i < 2; i++) {
        const std::string layer = "model.layers." + std::to_string(i) + ".";
        weights.norm(layer + "input_layernorm", 48, false);
        weights.linear(layer + "self_attn.q_proj", 48, 48, false);
        weights.linear(layer + "self_attn.k_proj", 48, 16, false);
        weights.linear(layer + "self_attn.v_proj", 48, 16, false);
        weights.linear(layer + "self_attn.o_proj", 48, 48, false);
        weights.norm(layer + "post_attention_layernorm", 48, false);
        weights.linear(layer + "mlp.gate_proj", 48, 80, false);
        weights.linear(layer + "mlp.up_proj", 48, 80, false);
        weights.linear(layer + "mlp.down_proj", 80, 48, false);
    }
    weights.norm("model.norm", 48, false);
    weights.linear("lm_head", 48, 97, false);
    weights.write(path / "model.safetensors");
}

void make_bert(const fs::path& path) {
    make_folder(path, "config.json", R"({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 24, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu"
    })");
    Weights weights;
    weights.add("embeddings.word_embeddings.weight", {61, 32}, 1);
    weights.add("embeddings.position_embeddings.weight", {24, 32}, 0.3f);
    weights.add("embeddings.token_type_embeddings.weight", {2, 32}, 0.3f);
    weights.norm("embeddings.LayerNorm", 32, true);
    const std::string layer = "encoder.layer.0.";
    for (const char* name : {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"})
        weights.linear(layer + name, 32, 32, true);
    weights.norm(layer + "attention.output.LayerNorm", 32, true);
    weights.linear(layer + "intermediate.dense", 32, 56, true);
    weights.linear(layer + "output.dense", 56, 32, true);
    weights.norm(layer + "output.LayerNorm", 32, true);
    weights.write(path / "model.safetensors");
}

/// hidden: that of the model it was made for. 48 fits.
void make_adapter(const fs::path& path, int64_t hidden) {
    make_folder(
        path, "adapter_config.json",
        R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"})");
    Weights weights;
    for (int i = 0; i < 2; i++) {
        const std::string layer = "base_model.model.model.layers." + std::to_string(i) + ".";
        weights.add(layer + "self_attn.q_proj.lora_A.weight", {4, hidden}, 0.5f);
        weights.add(layer + "self_attn.q_proj.lora_B.weight", {hidden, 4}, 0.5f);
        weights.add(layer + "mlp.down_proj.lora_A.weight", {4, 80}, 0.5f);
        weights.add(layer + "mlp.down_proj.lora_B.weight", {hidden, 4}, 0.5f);
    }
    weights.write(path / "adapter_model.safetensors");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: make_models FOLDER\n"), 2;
    try {
        const fs::path folder = argv[1];
        make_llama(folder / "llama");
        make_bert(folder / "bert");
        make_adapter(folder / "adapter", 48);
        make_adapter(folder / "wrong-adapter", 40);
    } catch (const std::exception& error) {
        return std::fprintf(stderr, "make_models: %s\n", error.what()), 1;
    }
    return 0;
}
