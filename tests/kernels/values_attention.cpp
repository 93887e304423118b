// store_kv() and attention().
#include <algorithm>
#include <cmath>

#include "values.h"

using namespace halfbyte;

namespace values {

namespace {

constexpr int64_t kKvHeads = 2;

struct Inputs {
    int64_t m, keys, dim;
    AttentionParams params;
    std::vector<float> q;     // [m, heads * dim]
    std::vector<float> k, v;  // [keys, 2 * dim], as the cache holds them
};

/// softmax(q k^T * scale ...) v. With weights p, an error e of every score changes a weight by at most 2 e p; the sums of at
/// most `keys` terms and the exponential (2 units in the last place) add their roundings.
Expected reference(const Inputs& in) {
    const AttentionParams& p = in.params;
    Expected out(in.m, p.heads * in.dim);
    std::vector<double> scores(static_cast<size_t>(in.keys));
    for (int64_t r = 0; r < in.m; r++)
        for (int64_t head = 0; head < p.heads; head++) {
            const int64_t kv = head / (p.heads / kKvHeads), position = in.keys - in.m + r;
            const bool last = p.causal || p.window > 0;
            const int64_t end = last ? position + 1 : in.keys;
            const int64_t begin = p.window > 0 ? std::max<int64_t>(0, position + 1 - p.window) : 0;
            double peak = -HUGE_VAL, error = 0, sum = 0;
            for (int64_t j = begin; j < end; j++) {
                double score = 0, sizes = 0;
                for (int64_t d = 0; d < in.dim; d++) {
                    const double term = double(in.q[out.at(r, head * in.dim + d)]) *
                                        double(in.k[size_t((j * kKvHeads + kv) * in.dim + d)]) * double(p.scale);
                    score += term, sizes += std::fabs(term);
                }
                double rounded = double(in.dim + 4) * kRounding * sizes;
                if (p.softcap > 0) {
                    score = double(p.softcap) * std::tanh(score / double(p.softcap));
                    rounded += 8 * kRounding * std::fabs(score);
                }
                if (p.bias != nullptr) {
                    score += double(p.bias[head * p.bias_head_stride + r * in.keys + j]);
                    rounded += kRounding * std::fabs(score);
                }
                scores[size_t(j)] = score, peak = std::max(peak, score), error = std::max(error, rounded);
            }
            for (int64_t j = begin; j < end; j++) {
                scores[size_t(j)] = std::exp(scores[size_t(j)] - peak);
                sum += scores[size_t(j)];
            }
            for (int64_t d = 0; d < in.dim; d++) {
                double value = 0, sizes = 0;
                for (int64_t j = begin; j < end; j++) {
                    const double term = scores[size_t(j)] / sum * double(in.v[size_t((j * kKvHeads + kv) * in.dim + d)]);
                    value += term, sizes += std::fabs(term);
                }
                out.value[out.at(r, head * in.dim + d)] = value;
                // Differences of scores are exact to a rounding of the scores themselves: up to |peak| of each.
                const double roundings = double(2 * in.keys + 16 + int64_t(4 * std::fabs(peak))) * kRounding;
                out.bound[out.at(r, head * in.dim + d)] = 1.01 * (sizes + std::fabs(value)) * (2 * error + roundings);
            }
        }
    return out;
}

}  // namespace

void attention(const std::vector<Subject>& subjects, int64_t m, int64_t dim) {
    for (const int64_t heads : {2, 6})
        for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            Inputs in;
            in.m = m, in.keys = m + 3, in.dim = dim;
            in.q = random_floats(m * heads * dim);
            std::vector<float> k = random_floats(in.keys * kKvHeads * dim), v = random_floats(in.keys * kKvHeads * dim);
            const std::vector<float> bias = random_floats(heads * m * in.keys);
            in.k = k, in.v = v;
            for (std::vector<float>* stored : {&in.k, &in.v})
                for (float& value : *stored)
                    value = dtype == DType::f16    ? f16_to_f32(f32_to_f16(value))
                            : dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(value))
                                                   : value;
            for (const char* variant : {"full", "causal", "window", "softcap", "bias"}) {
                const std::string name = variant;
                AttentionParams& p = in.params;
                p = {};
                p.heads = heads, p.kv_heads = kKvHeads, p.head_dim = dim, p.scale = float(1 / std::sqrt(double(dim)));
                p.causal = name == "causal" || name == "softcap";
                p.window = name == "window" ? 5 : 0;
                p.softcap = name == "softcap" ? 2.0f : 0.0f;
                p.bias = name == "bias" ? bias.data() : nullptr;
                p.bias_head_stride = m * in.keys;
                const Expected expected = reference(in);
                for (const Subject& s : subjects) {
                    // A cache of kKvHeads heads whose only sequence begins at key 0.
                    const int64_t rows = (in.keys + kKvBlock - 1) / kKvBlock * kKvBlock;
                    const Sequence stored{0, in.keys, 0, in.keys}, asked{0, m, 0, in.keys};
                    std::vector<char> memory[2];
                    KvView views[2];
                    for (int i = 0; i < 2; i++) {
                        memory[i].resize(size_t(kKvHeads * rows * kv_width(dim)) * size_of(dtype));
                        KvView& view = views[i];
                        view.data = memory[i].data(), view.dtype = dtype, view.role = i == 0 ? KvRole::keys : KvRole::values;
                        view.heads = kKvHeads, view.head_dim = dim, view.rows = rows;
                        s.device->store_kv(Tensor((i == 0 ? k : v).data(), in.keys, kKvHeads * dim), {&stored, 1}, view);
                    }
                    std::vector<float> found(size_t(m * heads * dim));
                    s.device->attention(Tensor(in.q.data(), m, heads * dim), views[0], views[1], {&asked, 1}, p,
                                        Tensor(found.data(), m, heads * dim));
                    compare(s, "attention " + name, found, expected);
                }
            }
        }
}

}  // namespace values
