// Llama (Touvron et al. 2023, arXiv:2302.13971), SmolLM2 and Mistral (arXiv:2310.06825).
// Reference: transformers models/llama/modeling_llama.py and models/mistral/modeling_mistral.py.
#include <cmath>

#include "core/error.h"
#include "models/hyperparameters.h"
#include "models/loader.h"

namespace halfbyte {

namespace {

class Llama final : public Model {
public:
    explicit Llama(Loader& loader);
    Tensor forward(const Context& context) const override;
    Tensor logits(const Context& context, const Tensor& hidden) const override { return linear(context, output_, hidden); }

private:
    struct Layer {
        Norm attention_norm, mlp_norm;
        Linear q, k, v, o;
        Linear gate, up, down;
    };
    Embedding tokens_;
    std::vector<Layer> layers_;
    Norm norm_;
    Linear output_;
    Rope rope_;
    AttentionParams attention_;
    Activation activation_ = Activation::silu;
};

Tensor Llama::forward(const Context& all) const {
    Tensor x = embed(all, tokens_, all.batch.tokens);
    for (int64_t i = 0; i < all.layers(info_.layers); i++) {
        const Context context = all.in_layer(i);
        const Layer& layer = layers_[size_t(all.layer(i))];
        const Workspace::Scope scratch(context.workspace);

        Tensor q, k, v;
        linear(context, {&layer.q, &layer.k, &layer.v}, rms_normed(context, layer.attention_norm, x), {&q, &k, &v});
        rope(context, rope_, attention_.head_dim, q);
        rope(context, rope_, attention_.head_dim, k);
        linear_add(context, layer.o, attention(context, i, q, k, v, attention_), x);

        Tensor gate, up;
        linear(context, {&layer.gate, &layer.up}, rms_normed(context, layer.mlp_norm, x), {&gate, &up});
        linear_add(context, layer.down, gated(activation_, gate, up), x);
    }
    return rms_norm(all, norm_, x);
}

// llama.cpp's converter stores the rows of a head as rotary pairs (2j, 2j + 1); Hugging Face as halves (j, j + d/2).
int64_t row_of_rotary_pair(int64_t row, int64_t head_dim) {
    const int64_t first = row / head_dim * head_dim, half = row % head_dim / (head_dim / 2), j = row % (head_dim / 2);
    return first + 2 * j + half;
}

Llama::Llama(Loader& loader) {
    const Config& config = loader.config();
    loader.set_base_prefix("model.");
    const int64_t hidden = dimension(config, {"hidden_size", "embedding_length"});
    const int64_t intermediate = dimension(config, {"intermediate_size", "feed_forward_length"});
    const int64_t heads = dimension(config, {"num_attention_heads", "attention.head_count"});
    const int64_t kv_heads = dimension(config, {"num_key_value_heads", "attention.head_count_kv"}, heads);
    const double eps = config.number({"rms_norm_eps", "attention.layer_norm_rms_epsilon"}, 1e-6);
    if (heads % kv_heads != 0) {
        fail(ErrorCode::corrupt, config.where(), ": ", heads, " attention heads cannot share ", kv_heads,
             " key/value heads");
    }
    const int64_t head_dim = config.has({"head_dim", "attention.key_length"})
                                 ? dimension(config, {"head_dim", "attention.key_length"})
                                 : hidden / heads;
    if (dimension(config, {"", "attention.value_length"}, head_dim) != head_dim || head_dim <= 0 || head_dim % 2 != 0) {
        fail(ErrorCode::unsupported, config.where(), ": heads need keys and values of one even size; the key size is ",
             head_dim);
    }
    config.ignore({"pretraining_tp"});  // splits the sums of a product, not their result

    info_.architecture = "llama";
    info_.causal = true;
    info_.hidden_size = hidden;
    info_.layers = dimension(config, {"num_hidden_layers", "block_count"});
    info_.max_positions = dimension(config, {"max_position_embeddings", "context_length"}, 2048);
    info_.heads = heads, info_.kv_heads = kv_heads, info_.head_dim = head_dim;
    info_.vocab_size = dimension(config, {"vocab_size", "vocab_size"}, loader.rows({"model.embed_tokens", "token_embd"}));

    attention_ = {
        .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .scale = 1 / std::sqrt(float(head_dim)), .causal = true};
    attention_.window = config.integer({"sliding_window", "attention.sliding_window"},
                                       config.model_type() == "mistral" && !config.is_null("sliding_window") ? 4096 : 0);
    if (attention_.window < 0) {
        fail(ErrorCode::corrupt, config.where(), ": the sliding window is ", attention_.window,
             ", expected 0 (none) or more");
    }
    activation_ = activation_named(config.text({"hidden_act", ""}, "silu"), config);
    const bool attention_bias = config.flag({"attention_bias", ""}, false), mlp_bias = config.flag({"mlp_bias", ""}, false);

    tokens_ = loader.embedding({"model.embed_tokens", "token_embd"}, info_.vocab_size, hidden);

    Loader::LinearOptions rotary{.bias_required = attention_bias};
    rotary.row_of = [head_dim](int64_t row) { return row_of_rotary_pair(row, head_dim); };
    const Loader::LinearOptions attn{.bias_required = attention_bias}, mlp{.bias_required = mlp_bias};

    for (int64_t i = 0; i < info_.layers; i++) {
        Layer& layer = layers_.emplace_back();
        loader.at_layer(i, "model.layers.", "blk.");
        layer.attention_norm = loader.rms_norm({"input_layernorm", "attn_norm"}, hidden, eps);
        layer.q = loader.linear({"self_attn.q_proj", "attn_q"}, hidden, heads * head_dim, rotary);
        layer.k = loader.linear({"self_attn.k_proj", "attn_k"}, hidden, kv_heads * head_dim, rotary);
        layer.v = loader.linear({"self_attn.v_proj", "attn_v"}, hidden, kv_heads * head_dim, attn);
        layer.o = loader.linear({"self_attn.o_proj", "attn_output"}, heads * head_dim, hidden, attn);
        layer.mlp_norm = loader.rms_norm({"post_attention_layernorm", "ffn_norm"}, hidden, eps);
        layer.gate = loader.linear({"mlp.gate_proj", "ffn_gate"}, hidden, intermediate, mlp);
        layer.up = loader.linear({"mlp.up_proj", "ffn_up"}, hidden, intermediate, mlp);
        layer.down = loader.linear({"mlp.down_proj", "ffn_down"}, intermediate, hidden, mlp);
    }
    loader.at_root();
    // After the layers, whose shapes have confirmed head_dim.
    rope_ = rope_from_config(config, head_dim, 10000.0, loader.vector({"", "rope_freqs"}, head_dim / 2));
    norm_ = loader.rms_norm({"model.norm", "output_norm"}, hidden, eps);
    info_.has_logits = loader.output_layer({"lm_head", "output"}, {"model.embed_tokens", "token_embd"}, hidden,
                                           info_.vocab_size, TiedByDefault::no, output_);
    loader.classification_head({"score", ""}, {}, hidden, *this);
    loader.ignore("*.rotary_emb.inv_freq");
    loader.finish(*this);
}

constexpr std::string_view kHfNames[] = {
    "LlamaForCausalLM",   "LlamaModel",   "LlamaForSequenceClassification",   "LlamaForTokenClassification",
    "MistralForCausalLM", "MistralModel", "MistralForSequenceClassification", "MistralForTokenClassification"};
constexpr std::string_view kModelTypes[] = {"llama", "mistral"};

std::unique_ptr<Model> load(Loader& loader) { return std::make_unique<Llama>(loader); }

}  // namespace

extern const Architecture kLlamaArchitecture{"llama", kHfNames, kModelTypes, &load};

}  // namespace halfbyte
