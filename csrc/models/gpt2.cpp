// GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
// Reference: transformers models/gpt2/modeling_gpt2.py.
#include <cmath>

#include "core/error.h"
#include "models/hyperparameters.h"
#include "models/loader.h"

namespace halfbyte {

namespace {

class Gpt2 final : public Model {
public:
    explicit Gpt2(Loader& loader);
    Tensor forward(const Context& context) const override;
    Tensor logits(const Context& context, const Tensor& hidden) const override { return linear(context, output_, hidden); }

private:
    struct Layer {
        Norm attention_norm, mlp_norm;
        Linear qkv, attention_output;
        Linear up, down;
        float scale;  // of the scores
    };
    Embedding tokens_, positions_;
    std::vector<Layer> layers_;
    Norm norm_;
    Linear output_;
    AttentionParams attention_;
    Activation activation_ = Activation::gelu_tanh;
};

Tensor Gpt2::forward(const Context& all) const {
    Tensor x = embed(all, tokens_, all.batch.tokens);
    embed_add(all, positions_, all.batch.positions, x);
    const int64_t hidden = info_.hidden_size;
    for (int64_t i = 0; i < all.layers(info_.layers); i++) {
        const Context context = all.in_layer(i);
        const Layer& layer = layers_[size_t(all.layer(i))];
        const Workspace::Scope scratch(context.workspace);

        const Tensor qkv = linear(context, layer.qkv, layer_normed(context, layer.attention_norm, x));
        AttentionParams params = attention_;
        params.scale = layer.scale;
        const Tensor heads = attention(context, i, qkv.columns(0, hidden), qkv.columns(hidden, hidden),
                                       qkv.columns(2 * hidden, hidden), params);
        linear_add(context, layer.attention_output, heads, x);

        const Tensor up = linear(context, layer.up, layer_normed(context, layer.mlp_norm, x));
        linear_add(context, layer.down, activated(activation_, up), x);
    }
    return layer_norm(all, norm_, x);
}

Gpt2::Gpt2(Loader& loader) {
    const Config& config = loader.config();
    loader.set_base_prefix("transformer.");
    const int64_t hidden = dimension(config, {"n_embd", "embedding_length"});
    const int64_t heads = dimension(config, {"n_head", "attention.head_count"});
    const int64_t inner = dimension(config, {"n_inner", "feed_forward_length"}, 4 * hidden);
    const double eps = config.number({"layer_norm_epsilon", "attention.layer_norm_epsilon"}, 1e-5);
    if (hidden % heads != 0) {
        fail(ErrorCode::corrupt, config.where(), ": ", heads, " attention heads do not divide n_embd = ", hidden);
    }
    const bool by_head_size = config.flag({"scale_attn_weights", ""}, true);
    const bool by_layer = config.flag({"scale_attn_by_inverse_layer_idx", ""}, false);
    config.ignore({"reorder_and_upcast_attn", "n_ctx"});  // a guard for 16-bit scores; an old twin of n_positions
    if (config.flag({"add_cross_attention", ""}, false)) {
        fail(ErrorCode::unsupported, config.where(),
             ": add_cross_attention is true; a GPT-2 with an encoder is not supported");
    }

    info_.architecture = "gpt2";
    info_.causal = true;
    info_.hidden_size = hidden;
    info_.layers = dimension(config, {"n_layer", "block_count"});
    info_.heads = info_.kv_heads = heads, info_.head_dim = hidden / heads;
    info_.max_positions = dimension(config, {"n_positions", "context_length"}, 1024);
    info_.vocab_size = dimension(config, {"vocab_size", "vocab_size"}, loader.rows({"transformer.wte", "token_embd"}));
    attention_ = {.heads = heads, .kv_heads = heads, .head_dim = info_.head_dim, .causal = true};
    activation_ = activation_named(config.text({"activation_function", ""}, "gelu_new"), config);

    tokens_ = loader.embedding({"transformer.wte", "token_embd"}, info_.vocab_size, hidden);
    positions_ = loader.embedding({"transformer.wpe", "position_embd"}, info_.max_positions, hidden);
    const Loader::LinearOptions conv1d{.bias_required = true, .conv1d = true};
    for (int64_t i = 0; i < info_.layers; i++) {
        Layer& layer = layers_.emplace_back();
        loader.at_layer(i, "transformer.h.", "blk.");
        layer.attention_norm = loader.layer_norm({"ln_1", "attn_norm"}, hidden, eps);
        layer.qkv = loader.linear({"attn.c_attn", "attn_qkv"}, hidden, 3 * hidden, conv1d);
        layer.attention_output = loader.linear({"attn.c_proj", "attn_output"}, hidden, hidden, conv1d);
        layer.mlp_norm = loader.layer_norm({"ln_2", "ffn_norm"}, hidden, eps);
        layer.up = loader.linear({"mlp.c_fc", "ffn_up"}, hidden, inner, conv1d);
        layer.down = loader.linear({"mlp.c_proj", "ffn_down"}, inner, hidden, conv1d);
        layer.scale = by_head_size ? 1 / std::sqrt(float(info_.head_dim)) : 1.0f;
        if (by_layer) layer.scale /= float(i + 1);
    }
    loader.at_root();
    norm_ = loader.layer_norm({"transformer.ln_f", "output_norm"}, hidden, eps);
    info_.has_logits = loader.output_layer({"lm_head", "output"}, {"transformer.wte", "token_embd"}, hidden,
                                           info_.vocab_size, TiedByDefault::yes, output_);
    const bool per_token = config.architecture() == "GPT2ForTokenClassification";
    loader.classification_head({per_token ? "classifier" : "score", ""}, {}, hidden, *this);
    loader.ignore("*.attn.bias");  // causal masks of old checkpoints
    loader.ignore("*.attn.masked_bias");
    loader.finish(*this);
}

constexpr std::string_view kHfNames[] = {"GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification",
                                         "GPT2ForTokenClassification"};
constexpr std::string_view kModelTypes[] = {"gpt2"};

std::unique_ptr<Model> load(Loader& loader) { return std::make_unique<Gpt2>(loader); }

}  // namespace

extern const Architecture kGpt2Architecture{"gpt2", kHfNames, kModelTypes, &load};

}  // namespace halfbyte
