#include "tiny_llama.h"

#include "header.h"
#include "io/folder.h"
#include "models/loader.h"

using namespace halfbyte;

namespace {

// hidden 4, 2 heads of 2, intermediate 6, 5 tokens: weights of zeros, one file made by hand.
std::vector<uint8_t> llama_tensors() {
    struct Shape {
        const char* name;
        int rows, cols;
    };
    constexpr Shape kShapes[] = {
        {"model.embed_tokens.weight", 5, 4},
        {"model.norm.weight", 1, 4},
        {"lm_head.weight", 5, 4},
        {"model.layers.0.input_layernorm.weight", 1, 4},
        {"model.layers.0.post_attention_layernorm.weight", 1, 4},
        {"model.layers.0.self_attn.q_proj.weight", 4, 4},
        {"model.layers.0.self_attn.k_proj.weight", 4, 4},
        {"model.layers.0.self_attn.v_proj.weight", 4, 4},
        {"model.layers.0.self_attn.o_proj.weight", 4, 4},
        {"model.layers.0.mlp.gate_proj.weight", 6, 4},
        {"model.layers.0.mlp.up_proj.weight", 6, 4},
        {"model.layers.0.mlp.down_proj.weight", 4, 6},
    };
    std::string text = "{";
    int end = 0;
    for (const Shape& shape : kShapes) {
        const int begin = end;
        end += shape.rows * shape.cols * 4;
        text += concat(text.size() > 1 ? "," : "", '"', shape.name, "\":{\"dtype\":\"F32\",\"shape\":[", shape.rows, ",",
                       shape.cols, "],\"data_offsets\":[", begin, ",", end, "]}");
    }
    text += '}';
    text.append(size_t(end) + 1, '\0');
    return fuzz::safetensors_of({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

}  // namespace

const halfbyte::Model& fuzz::tiny_llama() {
    static const std::string text =
        R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 2,
            "num_hidden_layers": 1, "vocab_size": 5})";
    static const std::vector<uint8_t> tensors = llama_tensors();
    static const std::unique_ptr<Model> model =
        load_model(*make_folder_checkpoint("llama", parse_config("config.json", text), text,
                                           parse_safetensors(MappedFile::borrow("llama", tensors)), "llama"),
                   fuzz::device(), {});
    return *model;
}
