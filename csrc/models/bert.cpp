// BERT (Devlin et al. 2018, arXiv:1810.04805), the encoder without its heads.
// Reference: transformers models/bert/modeling_bert.py.
#include <cmath>

#include "core/error.h"
#include "models/hyperparameters.h"
#include "models/loader.h"

namespace halfbyte {

namespace {

class Bert final : public Model {
public:
    explicit Bert(Loader& loader);
    Tensor forward(const Context& context) const override;

private:
    struct Layer {
        Linear q, k, v, attention_output;
        Norm attention_norm;
        Linear up, down;
        Norm output_norm;
    };
    Embedding tokens_, positions_, token_types_;
    Norm embedding_norm_;
    std::vector<Layer> layers_;
    AttentionParams attention_;
    Activation activation_ = Activation::gelu;
};

Tensor Bert::forward(const Context& all) const {
    Tensor x = embed(all, tokens_, all.batch.tokens);
    embed_add(all, positions_, all.batch.positions, x);
    if (all.batch.token_types.empty()) {
        const std::vector<int32_t> zeros(all.batch.tokens.size());
        embed_add(all, token_types_, zeros, x);
    } else {
        embed_add(all, token_types_, all.batch.token_types, x);
    }
    // Post-norm: the normalised sum is what the next sublayer reads and what it adds to.
    const Norm* norm = &embedding_norm_;
    for (int64_t i = 0; i < all.layers(info_.layers); i++) {
        const Context context = all.in_layer(i);
        const Layer& layer = layers_[size_t(all.layer(i))];
        const Workspace::Scope scratch(context.workspace);

        Tensor q, k, v;
        linear(context, {&layer.q, &layer.k, &layer.v}, layer_normed_in_place(context, *norm, x), {&q, &k, &v});
        linear_add(context, layer.attention_output, attention(context, i, q, k, v, attention_), x);

        const Tensor up = linear(context, layer.up, layer_normed_in_place(context, layer.attention_norm, x));
        linear_add(context, layer.down, activated(activation_, up), x);
        norm = &layer.output_norm;
    }
    return layer_norm(all, *norm, x);
}

Bert::Bert(Loader& loader) {
    const Config& config = loader.config();
    loader.set_base_prefix("bert.");
    const int64_t hidden = dimension(config, {"hidden_size", "embedding_length"});
    const int64_t heads = dimension(config, {"num_attention_heads", "attention.head_count"});
    const int64_t intermediate = dimension(config, {"intermediate_size", "feed_forward_length"});
    const double eps = config.number({"layer_norm_eps", "attention.layer_norm_epsilon"}, 1e-12);
    if (hidden % heads != 0) {
        fail(ErrorCode::corrupt, config.where(), ": ", heads, " attention heads do not divide hidden_size = ", hidden);
    }
    if (config.flag({"is_decoder", ""}, false) || config.flag({"add_cross_attention", ""}, false) ||
        config.flag({"", "attention.causal"}, false)) {
        fail(ErrorCode::unsupported, config.where(),
             ": this BERT is set up as a decoder; halfbyte runs it as an encoder only");
    }
    const std::string kind = config.text({"position_embedding_type", ""}, "absolute");
    if (kind != "absolute") {
        fail(ErrorCode::unsupported, config.where(), ": position_embedding_type is '", kind, "'; halfbyte runs 'absolute'");
    }
    config.ignore({"tie_word_embeddings", "pooling_type"});  // of the heads, and of what is done with the output

    info_.architecture = "bert";
    info_.hidden_size = hidden;
    info_.layers = dimension(config, {"num_hidden_layers", "block_count"});
    info_.heads = info_.kv_heads = heads, info_.head_dim = hidden / heads;
    info_.max_positions = dimension(config, {"max_position_embeddings", "context_length"}, 512);

    constexpr Name kTokens{"bert.embeddings.word_embeddings", "token_embd"};
    constexpr Name kTokenTypes{"bert.embeddings.token_type_embeddings", "token_types"};
    info_.vocab_size = dimension(config, {"vocab_size", "vocab_size"}, loader.rows(kTokens));
    info_.token_types = dimension(config, {"type_vocab_size", "token_type_count"}, loader.rows(kTokenTypes));
    attention_ = {
        .heads = heads, .kv_heads = heads, .head_dim = info_.head_dim, .scale = 1 / std::sqrt(float(info_.head_dim))};
    activation_ = activation_named(config.text({"hidden_act", ""}, "gelu"), config);

    tokens_ = loader.embedding(kTokens, info_.vocab_size, hidden);
    positions_ = loader.embedding({"bert.embeddings.position_embeddings", "position_embd"}, info_.max_positions, hidden);
    token_types_ = loader.embedding(kTokenTypes, info_.token_types, hidden);
    embedding_norm_ = loader.layer_norm({"bert.embeddings.LayerNorm", "token_embd_norm"}, hidden, eps);
    for (int64_t i = 0; i < info_.layers; i++) {
        Layer& layer = layers_.emplace_back();
        loader.at_layer(i, "bert.encoder.layer.", "blk.");
        layer.q = loader.linear({"attention.self.query", "attn_q"}, hidden, hidden);
        layer.k = loader.linear({"attention.self.key", "attn_k"}, hidden, hidden);
        layer.v = loader.linear({"attention.self.value", "attn_v"}, hidden, hidden);
        layer.attention_output = loader.linear({"attention.output.dense", "attn_output"}, hidden, hidden);
        layer.attention_norm = loader.layer_norm({"attention.output.LayerNorm", "attn_output_norm"}, hidden, eps);
        layer.up = loader.linear({"intermediate.dense", "ffn_up"}, hidden, intermediate);
        layer.down = loader.linear({"output.dense", "ffn_down"}, intermediate, hidden);
        layer.output_norm = loader.layer_norm({"output.LayerNorm", "layer_output_norm"}, hidden, eps);
    }
    loader.at_root();
    loader.classification_head({"classifier", ""}, {"bert.pooler.dense", ""}, hidden, *this);
    // Heads that hidden states and embeddings do not pass through.
    for (const std::string_view head : {"pooler.*", "bert.pooler.*", "cls.*", "*embeddings.position_ids"})
        loader.ignore(head);
    loader.finish(*this);
}

constexpr std::string_view kHfNames[] = {"BertModel", "BertForMaskedLM", "BertForPreTraining",
                                         "BertForSequenceClassification", "BertForTokenClassification"};
constexpr std::string_view kModelTypes[] = {"bert"};

std::unique_ptr<Model> load(Loader& loader) { return std::make_unique<Bert>(loader); }

}  // namespace

extern const Architecture kBertArchitecture{"bert", kHfNames, kModelTypes, &load};

}  // namespace halfbyte
