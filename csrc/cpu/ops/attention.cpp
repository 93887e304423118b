// softmax(q k^T) v with an online softmax over blocks of keys (Milakov and Gimelshein 2018, arXiv:1805.02867; blocked as in
// FlashAttention, arXiv:2205.14135): no buffer of queries x keys. The heads of a group share the keys and values they load.
// Ranges of keys may be done apart and merged (Flash-Decoding): each gives its maximum, its sum of weights and its sum of values.
//
// The sums of a row run over dimensions and keys in the same order whatever rows are computed beside it.
#include <float.h>

#include "cpu/ops/attention_tile.h"
#include "cpu/ops/math.h"
#include "cpu/ops/transpose.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

/// Rows of the next tile. A few sizes only: each is a pair of functions per kind of cache.
inline int tile_rows(int64_t left) {
    constexpr int kSizes[] = {12, 8, 6, 4, 3, 2};
    for (const int size : kSizes)
        if (size <= kSums16 && size <= left) return size;
    return 1;
}

/// Vectors of a tile of so many rows: 1, 2 or 4, which divide a block of keys.
constexpr int tile_vectors(int rows) { return kSums16 / rows >= 4 ? 4 : kSums16 / rows >= 2 ? 2 : 1; }

struct Work {
    float* scores;   // [kMostAttentionRows][kScoreBlock]
    float* queries;  // tiles of [head_dim][rows of the tile], scaled
    float* sums;     // [rows][padded] sums of weighted values
    float* maxima;   // [rows] of the scores so far
    float* weights;  // [rows] sums of the weights so far
    int64_t padded;  // whole_vectors(head_dim)
};

/// Keys that query i sees: [low, high), within the range of the task.
inline int64_t low_key(const AttentionTask& t, int64_t i) {
    return t.window > 0 ? max_of(t.first_key, t.first_position + i + 1 - t.window) : t.first_key;
}
inline int64_t high_key(const AttentionTask& t, int64_t i) {
    return t.causal || t.window > 0 ? min_of(t.last_key, t.first_position + i + 1) : t.last_key;
}

/// Scores of one row against keys [first, last) of [begin, end), whole vectors, as the softmax takes them: -infinity for keys
/// outside. Returns their maximum, at least `maximum`.
template <class Kv>
inline float finish_scores(const AttentionTask& t, float* scores, int64_t begin, int64_t end, int64_t first, int64_t last,
                           const float* bias, const float* k_scales, float maximum) {
    if constexpr (Kv::kScaled)
        for (int64_t i = begin; i < end; i += kF) store(scores + i, load(scores + i) * load(k_scales + i));
    if (t.softcap > 0) {
        const F cap = set(t.softcap), inverse = set(1.0f / t.softcap);
        for (int64_t i = begin; i < end; i += kF) store(scores + i, cap * vtanh(load(scores + i) * inverse));
    }
    if (bias != nullptr)
        for (int64_t i = first; i < last; i++) scores[i] += bias[i];
    for (int64_t i = begin; i < first; i++) scores[i] = -HUGE_VALF;
    for (int64_t i = last; i < end; i++) scores[i] = -HUGE_VALF;
    F peaks = set(maximum);
    for (int64_t i = begin; i < end; i += kF) peaks = vmax(load(scores + i), peaks);  // keeps `peaks` where a score is NaN
    return reduce_max(peaks);
}

/// Scores of one row -> their weights exp(score - peak) in place. Returns the sum of the weights.
template <class Kv>
inline float weigh(float* scores, int64_t begin, int64_t end, const float* v_scales, float peak) {
    F total = zero();
    if (peak == -HUGE_VALF) {  // nothing visible so far: all weights are zero, unless a score is NaN
        for (int64_t i = begin; i < end; i += kF) {
            const F s = load(scores + i), weight = select_less(s, zero(), zero(), s - s);
            store(scores + i, weight);
            total = total + weight;
        }
        return reduce_add(total);
    }
    const F factor = set(kLog2E), offset = set(-(peak * kLog2E));
    for (int64_t i = begin; i < end; i += kF) {
        const F weight = vexp2(fma(load(scores + i), factor, offset));
        if constexpr (Kv::kScaled) {
            // A key outside has a weight of zero, and perhaps no scale yet.
            store(scores + i, select_less(zero(), weight, weight * load(v_scales + i), weight));
        } else {
            store(scores + i, weight);
        }
        total = total + weight;
    }
    return reduce_add(total);
}

/// By what the sums of rows whose maxima grow from `before` to `peaks` must be multiplied. All arrays hold whole vectors.
///
/// exp(s - peak) = 2^(s log2(e) - rounded(peak log2(e))): what rounding does to the second term is the same factor for every
/// weight, as long as this is made from the same rounded terms.
template <int kRows>
inline void shrink_of(const float* before, const float* peaks, float* shrink) {
    const F factor = set(kLog2E), lowest = set(-FLT_MAX);
    for (int r = 0; r < kRows; r += kF) {
        const F old_base = load(before + r) * factor, base = load(peaks + r) * factor;
        // 1 where nothing changes, which may be -infinity.
        const F power = vexp2(old_base - vmax(lowest, base));
        store(shrink + r, select_less(old_base, base, power, set(1.0f)));
    }
}

/// Keys block .. block + kScoreBlock for kRows rows from `row` on.
template <class Kv, int kRows>
void attend_tile(const AttentionTask& t, const Work& work, int64_t block, int64_t row) {
    constexpr int kVectors = tile_vectors(kRows);
    const int64_t first_query = row / t.group, last_query = (row + kRows - 1) / t.group, dim = t.head_dim;
    const int64_t from = max_of(low_key(t, first_query) - block, 0);
    const int64_t to = min_of(high_key(t, last_query) - block, kScoreBlock);
    if (from >= to) return;
    const int64_t begin = from / 16 * 16, end = whole_vectors(to);

    const auto* k = static_cast<const typename Kv::T*>(t.k);
    for (int64_t i = begin; i < end;) {
        const auto* keys = k + (block + i) / kKeyBlock * kKeyBlock * dim + i % kKeyBlock;
        if (i % (16 * kVectors) == 0 && i + 16 * kVectors <= end) {
            score_tile<Kv, kRows, kVectors>(keys, work.queries + row * dim, dim, work.scores + i);
            i += 16 * kVectors;
        } else {
            score_tile<Kv, kRows, 1>(keys, work.queries + row * dim, dim, work.scores + i);
            i += 16;
        }
    }

    // Step by step for all rows: the steps of one row wait for each other.
    constexpr int kWhole = (kRows + kF - 1) / kF * kF;
    float before[kWhole], peaks[kWhole], shrink[kWhole];
    for (int r = kRows; r < kWhole; r++) before[r] = peaks[r] = 0;
    int64_t query = first_query, head = row % t.group;
    for (int r = 0; r < kRows; r++) {
        const int64_t first = min_of(max_of(low_key(t, query) - block, begin), end);
        const int64_t last = max_of(first, min_of(high_key(t, query) - block, end));
        const float* bias = t.bias == nullptr ? nullptr : t.bias + head * t.bias_head_stride + query * t.keys + block;
        before[r] = work.maxima[row + r];
        peaks[r] = finish_scores<Kv>(t, work.scores + r * kScoreBlock, begin, end, first, last, bias,
                                     Kv::kScaled ? t.k_scales + block : nullptr, before[r]);
        if (++head == t.group) head = 0, query++;
    }
    shrink_of<kRows>(before, peaks, shrink);
    for (int r = 0; r < kRows; r++) {
        const float sum =
            weigh<Kv>(work.scores + r * kScoreBlock, begin, end, Kv::kScaled ? t.v_scales + block : nullptr, peaks[r]);
        work.maxima[row + r] = peaks[r];
        work.weights[row + r] = work.weights[row + r] * shrink[r] + sum;
    }

    const auto* v = static_cast<const typename Kv::T*>(t.v);
    for (int64_t i = from; i < to;) {
        const int64_t place = i % kKeyBlock, count = min_of(kKeyBlock - place, to - i);
        for (int64_t part = 0; part < work.padded; part += kValueColumns) {
            const int64_t columns = min_of(kValueColumns, work.padded - part);
            const auto* values = v + (block + i - place) * work.padded + kKeyBlock * part + place * columns;
            float* out = work.sums + row * work.padded + part;
            int64_t d = 0;
            for (; d + 16 * kVectors <= columns; d += 16 * kVectors)
                value_tile<Kv, kRows, kVectors>(values + d, columns, count, work.scores + i, shrink, out + d, work.padded);
            for (; d < columns; d += 16)
                value_tile<Kv, kRows, 1>(values + d, columns, count, work.scores + i, shrink, out + d, work.padded);
        }
        for (float& factor : shrink) factor = 1;
        i += count;
    }
}

/// `size` <= kMostAttentionRows rows from `row` on -> [head_dim][size], scaled. Writes up to kF floats behind that.
inline void pack_queries(const AttentionTask& t, int64_t row, int64_t size, float* out) {
    const float* rows[kMostAttentionRows];
    int64_t query = row / t.group, head = row % t.group;
    for (int64_t r = 0; r < size; r++) {
        rows[r] = t.q + query * t.q_stride + head * t.head_dim;
        if (++head == t.group) head = 0, query++;
    }
    if (size <= 4) {  // as when decoding: a transposition would be mostly of zeros
        for (int64_t r = 0; r < size; r++)
            for (int64_t d = 0; d < t.head_dim; d++) out[d * size + r] = t.scale * rows[r][d];
        return;
    }
    const F scale = set(t.scale);
    constexpr int64_t kGroups = (kMostAttentionRows + kF - 1) / kF;
    const int64_t groups = (size + kF - 1) / kF;
    for (int64_t d = 0; d < t.head_dim; d += kF) {
        const int64_t n = min_of(kF, t.head_dim - d);
        F v[kGroups][kF];
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t i = 0; i < kF; i++) {
                const int64_t r = g * kF + i;
                v[g][i] = r >= size ? zero() : scale * (n == kF ? load(rows[r] + d) : load_tail(rows[r] + d, n));
            }
            transpose(v[g]);
        }
        // In the order of memory: what one store writes too much, the next one writes over.
        for (int64_t i = 0; i < n; i++)
            for (int64_t g = 0; g < groups; g++) store(out + (d + i) * size + g * kF, v[g][i]);
    }
}

template <class Kv>
inline void attend(const AttentionTask& t) {
    const int64_t dim = t.head_dim, padded = whole_vectors(dim), rows = t.queries * t.group;
    Work work;
    work.padded = padded;
    work.scores = t.scratch;
    work.queries = work.scores + kMostAttentionRows * kScoreBlock;
    work.sums = work.queries + whole_vectors(rows * dim);
    work.maxima = work.sums + rows * padded;
    work.weights = work.maxima + whole_vectors(rows);
    if (t.partial != nullptr) {
        work.sums = t.partial;
        work.maxima = work.sums + rows * padded;
        work.weights = work.maxima + whole_vectors(rows);
    }
    // Row r is query r / group, head r % group.
    for (int64_t row = 0; row < rows;) {
        const int64_t size = tile_rows(rows - row);
        pack_queries(t, row, size, work.queries + row * dim);
        row += size;
    }
    for (int64_t i = 0; i < rows * padded; i++) work.sums[i] = 0;
    for (int64_t r = 0; r < rows; r++) work.maxima[r] = -HUGE_VALF, work.weights[r] = 0;

    const int64_t end = high_key(t, t.queries - 1);
    for (int64_t block = low_key(t, 0) / kScoreBlock * kScoreBlock; block < end; block += kScoreBlock)
        for (int64_t row = 0; row < rows;) {
            const int size = tile_rows(rows - row);
            switch (size) {
                case 12:
                    if constexpr (kSums16 >= 12) attend_tile<Kv, 12>(t, work, block, row);
                    break;
                case 8:
                    if constexpr (kSums16 >= 8) attend_tile<Kv, 8>(t, work, block, row);
                    break;
                case 6:
                    if constexpr (kSums16 >= 6) attend_tile<Kv, 6>(t, work, block, row);
                    break;
                case 4:
                    if constexpr (kSums16 >= 4) attend_tile<Kv, 4>(t, work, block, row);
                    break;
                case 3:
                    if constexpr (kSums16 >= 3) attend_tile<Kv, 3>(t, work, block, row);
                    break;
                case 2: attend_tile<Kv, 2>(t, work, block, row); break;
                default: attend_tile<Kv, 1>(t, work, block, row); break;
            }
            row += size;
        }

    if (t.partial != nullptr) return;
    for (int64_t r = 0; r < rows; r++) {
        float* out = t.out + r / t.group * t.out_stride + r % t.group * dim;
        // A row that saw nothing has a sum of zero and gives zeros.
        const float inverse = work.weights[r] == 0 ? 0 : 1.0f / work.weights[r];
        for (int64_t d = 0; d < dim; d++) out[d] = work.sums[r * padded + d] * inverse;
    }
}

}  // namespace

void attention_f32(const AttentionTask& task) { attend<KvF32>(task); }
void attention_f16(const AttentionTask& task) { attend<KvF16>(task); }
void attention_bf16(const AttentionTask& task) { attend<KvBf16>(task); }
void attention_i8(const AttentionTask& task) { attend<KvI8>(task); }

void merge_attention(const float* parts, int64_t count, int64_t queries, int64_t group, int64_t head_dim, float* out,
                     int64_t out_stride) {
    const int64_t rows = queries * group, padded = whole_vectors(head_dim), size = partial_size(rows, head_dim);
    const int64_t maxima = rows * padded, weights = maxima + whole_vectors(rows);
    for (int64_t r = 0; r < rows; r++) {
        float* to = out + r / group * out_stride + r % group * head_dim;
        float peak = -HUGE_VALF, sum = 0;
        for (int64_t c = 0; c < count; c++) peak = max_of(parts[c * size + maxima + r], peak);
        for (int64_t d = 0; d < head_dim; d++) to[d] = 0;
        for (int64_t c = 0; c < count; c++) {
            const float* part = parts + c * size;
            const float before = part[maxima + r] * kLog2E, base = peak * kLog2E;
            const float factor = part[maxima + r] == peak ? 1.0f : exp2f(before - base);
            sum += part[weights + r] * factor;
            for (int64_t d = 0; d < head_dim; d++) to[d] += part[r * padded + d] * factor;
        }
        const float inverse = sum == 0 ? 0 : 1.0f / sum;
        for (int64_t d = 0; d < head_dim; d++) to[d] *= inverse;
    }
}

}  // namespace halfbyte::cpu::HALFBYTE_ISA
