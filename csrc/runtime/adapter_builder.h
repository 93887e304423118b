// Tensors of an adapter file, one module at a time -> Adapter. Every shape is checked against the model.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"
#include "models/model.h"
#include "nn/adapter.h"

namespace halfbyte {

/// What a file holds for one module. Dtypes float32, float16, bfloat16.
struct ModuleTensors {
    std::optional<SafetensorsEntry> a, b, b_bias;              ///< [r, in], [out, r], [out]
    std::optional<SafetensorsEntry> embedding_a, embedding_b;  ///< [r, vocabulary], [dim, r]
    std::optional<SafetensorsEntry> magnitude;                 ///< DoRA: [out]; of an embedding [dim]
    std::optional<SafetensorsEntry> weight, bias;              ///< trained whole, in the model's shape or with other rows
    bool weight_is_base = false;                 ///< `weight` is what the model was given, not what was trained
    std::optional<SafetensorsEntry> ia3;         ///< [out, 1], or [1, in] of what a layer reads
    std::optional<SafetensorsEntry> token_rows;  ///< [tokens, dim]
};

class AdapterBuilder {
public:
    /// `where`: the file, which starts the errors.
    AdapterBuilder(std::string name, std::string kind, std::string where, const Model& model, Device& device);

    /// Adds one module. `scale`: of LoRA; `tokens`: of token_rows. Nothing happens for parts of the reference's model that no
    /// result passes through. Errors: unsupported (no such module, a tensor that its kind of module cannot have), corrupt
    /// (shapes that do not fit, halves of pairs, twice the same module).
    void add(const std::string& module, const ModuleTensors& tensors, float scale, std::span<const int32_t> tokens);
    /// [tokens, hidden], or [tokens, layers * 2 * kv_heads * head_dim].
    void set_prompt(const SafetensorsEntry& rows, int64_t tokens);
    void set_prefix(const SafetensorsEntry& rows, int64_t tokens);
    /// layer_replication: ranges [first, last) of layers that run one after the other. Before add(): names of modules count
    /// the layers as they run.
    void set_layers(std::span<const std::pair<int64_t, int64_t>> ranges);
    void set_invocation(std::vector<int32_t> tokens) { adapter_->invocation_tokens_ = std::move(tokens); }
    /// An output layer that shares the table of the input embedding follows what was done to its rows and its size.
    void tie_output();
    bool has(std::string_view module) const;  ///< a module of the model that has a weight: "lm_head", "layers.0.mlp.up_proj"

    std::shared_ptr<const Adapter> finish();

private:
    /// The module that a name of the adapter means, and its pass; null: none.
    const Module* find(const std::string& name, int64_t& pass) const;
    Weight matrix(const std::string& where, const SafetensorsEntry& entry, int64_t rows, int64_t cols,
                  const char* meaning) const;
    std::vector<float> vector(const std::string& where, const SafetensorsEntry& entry, int64_t size) const;
    Buffer to_device(std::span<const float> values) const;
    void add_linear(const std::string& where, const Module& module, const ModuleTensors& tensors, float scale,
                    ModuleAdapter& out);
    void add_embedding(const std::string& where, const Module& module, const ModuleTensors& tensors, float scale,
                       std::span<const int32_t> tokens, ModuleAdapter& out);
    void add_norm(const std::string& where, const Module& module, const ModuleTensors& tensors, ModuleAdapter& out);
    void add_token_outputs(const std::string& where, const Module& module, const SafetensorsEntry& rows,
                           std::span<const int32_t> tokens, ModuleAdapter& out);
    LoraFactors lora(const std::string& where, const SafetensorsEntry& a, const SafetensorsEntry& b, int64_t in, int64_t out,
                     float scale, std::string_view name_of_a) const;

    std::string where_;
    const Model& model_;
    Device& device_;
    std::unordered_map<std::string_view, int> index_;
    std::shared_ptr<Adapter> adapter_;
    // Of the input embedding, for tie_output():
    std::optional<SafetensorsEntry> input_rows_, input_table_;
    bool input_table_is_base_ = false;
    std::vector<int32_t> input_tokens_;
};

}  // namespace halfbyte
