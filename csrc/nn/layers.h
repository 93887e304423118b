// The layers that models are made of, written once against Device.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "nn/context.h"

namespace halfbyte {

/// y = x W^T + b, plus the adapters of the batch. `module` names the layer for adapters.
struct Linear {
    Weight weight;    ///< uploaded
    Buffer bias;      ///< f32 [out] or empty
    int module = -1;  ///< index into Model::modules(); -1: no adapter can name it
    int64_t in_features = 0, out_features = 0;
};

struct Embedding {
    Weight table;  ///< uploaded for lookup
    int64_t count = 0, dim = 0;
    int module = -1;
};

struct Norm {
    Buffer gamma, beta;  ///< f32 [dim]; beta empty for RMSNorm
    float eps = 0;
    int module = -1;
};

// What a linear layer may read instead of a tensor: what a norm or an activation makes of it on the way, without a pass of its own.
LinearInput rms_normed(const Context& context, const Norm& norm, const Tensor& x);    ///< x stays as it is
LinearInput layer_normed(const Context& context, const Norm& norm, const Tensor& x);  ///< x stays as it is
LinearInput layer_normed_in_place(const Context& context, const Norm& norm,
                                  const Tensor& x);             ///< x holds the normalised rows
LinearInput activated(Activation activation, const Tensor& x);  ///< x is undefined afterwards
/// activation(gate) * up; gate is undefined afterwards.
LinearInput gated(Activation activation, const Tensor& gate, const Tensor& up);

/// New tensor [x.rows, out]; wider where an adapter of the batch has replaced the layer by a wider one.
Tensor linear(const Context& context, const Linear& layer, const LinearInput& input);
Tensor linear(const Context& context, const Linear& layer, const Tensor& x);
/// Several layers of one input in one call: ys[i] is a new tensor [x.rows, out_i].
void linear(const Context& context, std::initializer_list<const Linear*> layers, const LinearInput& input,
            std::initializer_list<Tensor*> ys);
/// residual += layer(x)
void linear_add(const Context& context, const Linear& layer, const LinearInput& input, Tensor residual);
void linear_add(const Context& context, const Linear& layer, const Tensor& x, Tensor residual);

Tensor embed(const Context& context, const Embedding& table, std::span<const int32_t> ids);
void embed_add(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor x);
/// x = the rows of ids, or x += them. Ids below 0 are prompts (see Batch::tokens).
void embed(const Context& context, const Embedding& table, std::span<const int32_t> ids, Tensor x, bool accumulate);

Tensor layer_norm(const Context& context, const Norm& norm, const Tensor& x);
void layer_norm(const Context& context, const Norm& norm, const Tensor& x, Tensor out);  ///< out may be x
Tensor rms_norm(const Context& context, const Norm& norm, const Tensor& x);

/// Self-attention of the batch. With a cache: k and v are stored behind the keys of `layer` first; without: within the
/// batch. q [T, heads * d], k and v [T, kv_heads * d] -> [T, heads * d]
Tensor attention(const Context& context, int64_t layer, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionParams& params);

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as a table of frequencies made once from the config.
struct Rope {
    std::vector<float> frequencies;  ///< radians per position, [rotary_dim / 2]
    float magnitude = 1;
    RopeStyle style = RopeStyle::half;
};
void rope(const Context& context, const Rope& rope, int64_t head_dim, Tensor x);

}  // namespace halfbyte
