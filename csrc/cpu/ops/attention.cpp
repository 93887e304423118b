// softmax(q k^T) v with an online softmax over blocks of keys (Milakov and Gimelshein 2018, arXiv:1805.02867; blocked as in
// FlashAttention, arXiv:2205.14135): no buffer of queries x keys. The heads of a group share the keys and values they load.
#include "cpu/ops/float_tile.h"
#include "cpu/ops/math.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int64_t kFewRows = 6;  // up to so many rows, transposing the keys costs more than it gains

/// [count][dim] of a cache -> float32 [count][padded], the padding zeroed.
template <class Kind>
inline void widen(const typename Kind::T* from, int64_t stride, int64_t count, int64_t dim, int64_t padded, float* to) {
    for (int64_t i = 0; i < count; i++, from += stride, to += padded) {
        int64_t k = 0;
        for (; k + kF <= dim; k += kF) store(to + k, Kind::vector(from + k));
        if (k < dim) store_tail(to + k, vector_tail<Kind>(from + k, dim - k), dim - k);
        for (k = dim; k < padded; k++) to[k] = 0;
    }
}

/// Scores of one row against keys [first, last) of the block -> exp(score - maximum) in place, zero for the others. Returns
/// their sum; `maximum` is raised, and `shrink` says by what the earlier sums must be multiplied.
inline float softmax_step(const AttentionTask& t, float* scores, const float* bias, int64_t first, int64_t last,
                          float& maximum, float& shrink) {
    shrink = 1;
    if (t.softcap > 0) {
        const F cap = set(t.softcap), inverse = set(1.0f / t.softcap);
        for (int64_t i = 0; i < kKeyBlock; i += kF) store(scores + i, cap * vtanh(load(scores + i) * inverse));
    }
    if (bias != nullptr)
        for (int64_t i = first; i < last; i++) scores[i] += bias[i];
    for (int64_t i = 0; i < first; i++) scores[i] = -HUGE_VALF;
    for (int64_t i = last; i < kKeyBlock; i++) scores[i] = -HUGE_VALF;
    F peaks = set(-HUGE_VALF);
    for (int64_t i = 0; i < kKeyBlock; i += kF) peaks = vmax(load(scores + i), peaks);  // keeps `peaks` where a score is NaN
    const float peak = max_of(reduce_max(peaks), maximum);
    if (peak == -HUGE_VALF) {  // nothing visible so far: all weights are zero, unless a score is NaN
        F any = zero();
        for (int64_t i = 0; i < kKeyBlock; i += kF) {
            const F s = load(scores + i);
            const F weight = select_less(s, set(0.0f), zero(), s - s);
            store(scores + i, weight);
            any = any + weight;
        }
        return reduce_add(any);
    }
    if (peak > maximum) shrink = maximum == -HUGE_VALF ? 0 : expf(maximum - peak);
    maximum = peak;
    F sum = zero();
    for (int64_t i = 0; i < kKeyBlock; i += kF) {
        const F weight = vexp(load(scores + i) - set(peak));
        store(scores + i, weight);
        sum = sum + weight;
    }
    return reduce_add(sum);
}

template <class Kind>
inline void attend(const AttentionTask& t) {
    const int64_t dim = t.head_dim, padded = (dim + 15) / 16 * 16, rows = t.queries * t.group;
    float* keys = t.scratch;                       // [64][padded], or transposed [64 / 16][dim][16]
    float* values = keys + kKeyBlock * padded;     // [64][padded]
    float* queries = values + kKeyBlock * padded;  // [rows][padded], scaled
    float* acc = queries + rows * padded;          // [rows][padded]
    float* scores = acc + rows * padded;           // [rows][64]
    float* maxima = scores + rows * kKeyBlock;     // [rows]
    float* sums = maxima + (rows + 15) / 16 * 16;  // [rows]
    // Row r is query r / group, head r % group.
    for (int64_t r = 0; r < rows; r++) {
        const float* q = t.q + r / t.group * t.q_stride + r % t.group * dim;
        for (int64_t i = 0; i < padded; i++) queries[r * padded + i] = i < dim ? q[i] * t.scale : 0, acc[r * padded + i] = 0;
        maxima[r] = -HUGE_VALF, sums[r] = 0;
    }
    // Keys that query i sees: [low(i), high(i)).
    const auto high = [&](int64_t i) {
        return t.causal || t.window > 0 ? min_of(t.keys, t.first_position + i + 1) : t.keys;
    };
    const auto low = [&](int64_t i) {
        return t.window > 0 ? max_of(int64_t(0), t.first_position + i + 1 - t.window) : int64_t(0);
    };
    const auto* k_data = static_cast<const typename Kind::T*>(t.k);
    const auto* v_data = static_cast<const typename Kind::T*>(t.v);
    const int64_t end = high(t.queries - 1);
    for (int64_t block = low(0) / kKeyBlock * kKeyBlock; block < end; block += kKeyBlock) {
        const int64_t count = min_of(kKeyBlock, end - block);
        const auto* k = k_data + block * t.k_stride;
        if (rows <= kFewRows) {
            dot_products<Kind>(k, t.k_stride, count, queries, padded, rows, dim, scores, kKeyBlock);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = count; i < kKeyBlock; i++) scores[r * kKeyBlock + i] = 0;
        } else {
            for (int64_t i = 0; i < rows * kKeyBlock; i++) scores[i] = 0;
            for (int64_t c = 0; c < count; c += kPanelRows) {
                transpose_panel<Kind>(k + c * t.k_stride, t.k_stride, min_of(kPanelRows, count - c), dim, keys);
                outer_products(keys, kPanelRows, queries, padded, rows, dim, scores + c, kKeyBlock);
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            const int64_t i = r / t.group;
            const int64_t first = min_of(max_of(low(i) - block, int64_t(0)), kKeyBlock);
            const int64_t last = max_of(first, min_of(high(i) - block, kKeyBlock));
            const float* bias = t.bias == nullptr ? nullptr : t.bias + r % t.group * t.bias_head_stride + i * t.keys + block;
            float shrink;
            const float sum = softmax_step(t, scores + r * kKeyBlock, bias, first, last, maxima[r], shrink);
            sums[r] = sums[r] * shrink + sum;
            if (shrink != 1)
                for (int64_t d = 0; d < padded; d += kPanelRows) {
                    float* a = acc + r * padded + d;
                    store16(a, mul(load16(a), set(shrink)));
                }
        }
        widen<Kind>(v_data + block * t.v_stride, t.v_stride, count, dim, padded, values);
        for (int64_t d = 0; d < padded; d += kPanelRows)
            outer_products(values + d, padded, scores, kKeyBlock, rows, count, acc + d, padded);
    }
    for (int64_t r = 0; r < rows; r++) {
        float* out = t.out + r / t.group * t.out_stride + r % t.group * dim;
        // A row that saw nothing has a sum of zero and gives zeros.
        const float inverse = sums[r] == 0 ? 0 : 1.0f / sums[r];
        for (int64_t i = 0; i < dim; i++) out[i] = acc[r * padded + i] * inverse;
    }
}

}  // namespace

void attention_f32(const AttentionTask& task) { attend<AsF32>(task); }
void attention_f16(const AttentionTask& task) { attend<AsF16>(task); }

}  // namespace halfbyte::cpu::HALFBYTE_ISA
