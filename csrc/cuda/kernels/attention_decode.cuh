// Attention of a few queries against a cache, float32 arithmetic: bound by the bytes of keys and values, each read once for up to 8
// (query, head) pairs that share a key head. A block takes a share of the keys (Flash-Decoding), in tiles of 64: each of 4 warps
// the scores of its 16 keys, one warp a query's online softmax, then each warp the values of its 16 keys; two barriers a tile.
// 8 pairs of a head of 128 cost a warp about 2,400 instructions a tile (40 % of them multiplications), a multiprocessor 2,400 cycles
// in which memory brings the 32 KiB of an f16 tile on an A100 or H100: both are then equally busy. With 4 pairs it is 1,500 and memory
// alone bounds. At 12 warps a multiprocessor, 24 KiB are on their way at any time.
#pragma once

#include "cuda/kernels/attention.cuh"

namespace halfbyte::cuda::attention {

constexpr int kDecodeThreads = 128, kDecodeWarps = kDecodeThreads / 32;
constexpr int kWarpKeys = kTileKeys / kDecodeWarps;

/// How a lane loads 8 elements of a row that kLanes lanes share: two halves of four, which begin at offset(half, kLanes, part). All
/// loads of a warp are whole sectors.
struct Decode16 {  // f16 and bf16
    using Raw = uint4;
    static constexpr int kBytes = 2, kLoads = 1;  // of an element; of a lane
    static constexpr bool kScaled = false;
    static __device__ __forceinline__ int offset(int half, int, int part) { return 8 * part + 4 * half; }
    static __device__ __forceinline__ Raw load(const char* row, const int (&at)[2]) {
        return __ldg(reinterpret_cast<const uint4*>(row + at[0]));
    }
    static __device__ __forceinline__ void unpack(const Raw (&raw)[4], Element element, float (&out)[4][8]) {
        if (element == Element::bf16) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const uint32_t word = word_of(raw[i / 4], i % 4);
                out[i / 4][2 * (i % 4)] = __uint_as_float(word << 16);
                out[i / 4][2 * (i % 4) + 1] = __uint_as_float(word & 0xffff0000u);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const uint32_t word = word_of(raw[i / 4], i % 4);
                const float2 two = __half22float2(reinterpret_cast<const __half2&>(word));
                out[i / 4][2 * (i % 4)] = two.x, out[i / 4][2 * (i % 4) + 1] = two.y;
            }
        }
    }
    static __device__ __forceinline__ uint32_t word_of(const uint4& raw, int i) {
        return i == 0 ? raw.x : i == 1 ? raw.y : i == 2 ? raw.z : raw.w;
    }
};
struct DecodeI8 {
    using Raw = uint2;
    static constexpr int kBytes = 1, kLoads = 1;
    static constexpr bool kScaled = true;
    static __device__ __forceinline__ int offset(int half, int, int part) { return 8 * part + 4 * half; }
    static __device__ __forceinline__ Raw load(const char* row, const int (&at)[2]) {
        return __ldg(reinterpret_cast<const uint2*>(row + at[0]));
    }
    static __device__ __forceinline__ void unpack(const Raw (&raw)[4], Element, float (&out)[4][8]) {
#pragma unroll
        for (int i = 0; i < 32; ++i) out[i / 8][i % 8] = signed_byte(i % 8 < 4 ? raw[i / 8].x : raw[i / 8].y, i % 4);
    }
};
struct DecodeF32 {
    struct Raw {
        float4 half[2];
    };
    static constexpr int kBytes = 4, kLoads = 2;
    static constexpr bool kScaled = false;
    static __device__ __forceinline__ int offset(int half, int lanes, int part) { return 4 * (part + half * lanes); }
    static __device__ __forceinline__ Raw load(const char* row, const int (&at)[2]) {
        return {{__ldg(reinterpret_cast<const float4*>(row + at[0])), __ldg(reinterpret_cast<const float4*>(row + at[1]))}};
    }
    static __device__ __forceinline__ void unpack(const Raw (&raw)[4], Element, float (&out)[4][8]) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float4& x = raw[i / 2].half[i % 2];
            float* to = &out[i / 2][i % 2 * 4];
            to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
        }
    }
};

/// Sums of four values over kLanes lanes each; lane `part` gets that of value part / (kLanes / 4). Each exchange halves what is left,
/// so that it takes 2 + 1 + log2(kLanes / 4) shuffles.
template <int kLanes>
__device__ __forceinline__ float sum_of_four(const float (&v)[4], int part) {
    const bool upper = (part & (kLanes / 2)) != 0, odd = (part & (kLanes / 4)) != 0;
    float a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
    a += __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], kLanes / 2);
    b += __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], kLanes / 2);
    float sum = odd ? b : a;
    sum += __shfl_xor_sync(0xffffffffu, odd ? a : b, kLanes / 4);
#pragma unroll
    for (int bits = kLanes / 8; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    return sum;
}

/// kLanes * 8 >= head_dim lanes share a row. Pair r of a block is query (first + r) / heads_per_kv of the sequence, head
/// (first + r) % heads_per_kv of the group. grid: chunks of kQueries pairs and key heads, splits, sequences.
template <class Source, int kLanes, int kQueries>
__global__ void __launch_bounds__(kDecodeThreads, kQueries == 1 ? 4 : 3) decode_kernel(const Attention a, const int chunks) {
    constexpr int kGroups = 32 / kLanes, kSteps = kWarpKeys / kGroups;  // keys that a warp loads at once; its loads
    constexpr int kOwn = (kQueries + kDecodeWarps - 1) / kDecodeWarps;  // pairs whose softmax a warp does
    constexpr int kSlots = 8 * kLanes;
    HB_SHARED_ARRAY(float, queries, [kQueries][2][4 * kLanes]);
    HB_SHARED_ARRAY(float, weights, [2][kQueries][kTileKeys]);  // scores, then their weights
    HB_SHARED_ARRAY(float, shrink, [2][kQueries]);
    HB_SHARED_ARRAY(float, state, [kQueries][2]);  // maximum and sum of weights, at the end
    HB_SHARED_ARRAY(float, merged, [kDecodeWarps][kQueries][kSlots]);

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, part = lane % kLanes, group = lane / kLanes;
    const int kv_head = blockIdx.x / chunks, split = blockIdx.y, sequence = blockIdx.z;
    const AttentionSequence s = a.sequences[sequence];
    const int heads_per_kv = a.heads / a.kv_heads;
    const int first = (blockIdx.x % chunks) * kQueries, last = min(s.rows * heads_per_kv, first + kQueries) - 1;
    if (s.rows > kDecodeRows || first > last) return;
    const int low = first_key(a, s, first / heads_per_kv), high = last_key(a, s, last / heads_per_kv);
    const int first_tile = low / kTileKeys, tiles = max(0, (high + kTileKeys - 1) / kTileKeys - first_tile);
    const int share = (tiles + a.splits - 1) / a.splits;
    const int begin = first_tile + min(tiles, split * share), end = first_tile + min(tiles, (split + 1) * share);

#pragma unroll 1
    for (int i = thread; i < kQueries * kSlots; i += kDecodeThreads) {
        const int pair = first + i / kSlots, half = i % kSlots / (4 * kLanes), slot = i % (4 * kLanes);
        const int column = Source::offset(half, kLanes, slot / 4) + slot % 4;
        float x = 0;
        if (pair <= last && column < a.head_dim)
            x = a.q[(s.first_row + pair / heads_per_kv) * a.q_stride +
                    (kv_head * heads_per_kv + pair % heads_per_kv) * a.head_dim + column];
        queries[i / kSlots][half][slot] = x * (a.scale * kLog2E);
    }
    __syncthreads();

    float sums[kQueries][8] = {};
    float top[kOwn], total[kOwn];  // of pairs warp + 4 * i
#pragma unroll
    for (int i = 0; i < kOwn; ++i) top[i] = -INFINITY, total[i] = 0;
    const char* const k_base = static_cast<const char*>(a.k.data) + kv_head * a.k.head_stride * Source::kBytes;
    const char* const v_base = static_cast<const char*>(a.v.data) + kv_head * a.v.head_stride * Source::kBytes;
    const int mine = warp * kWarpKeys + group * kSteps;  // the first of this lane's keys in a tile

    // Always four loads ahead: the next keys or values are on their way while these are multiplied. Lanes behind the end of a row and
    // keys that no query sees load what is there in their stead: the one meets a query's zeros, the other a weight of zero.
    const int loaded = Source::kBytes == 4 ? a.head_dim : padded_width(a.head_dim);
    int at[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) at[i] = min(Source::offset(i, kLanes, part), loaded - 8 / Source::kLoads) * Source::kBytes;
    typename Source::Raw raw[4];
    const auto fetch = [&](bool is_keys, int tile, int64_t tile_row, int step) {
        const int lowest = max(low - tile * kTileKeys, 0), highest = min(high - tile * kTileKeys, kTileKeys) - 1;
        const int bytes = int(is_keys ? a.k.row_stride : a.v.row_stride) * Source::kBytes;
        const char* rows = (is_keys ? k_base : v_base) + tile_row * bytes;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            raw[i] = Source::load(rows + int64_t(min(max(mine + step + i, lowest), highest)) * bytes, at);
    };
    int64_t row = 0, next_row = 0;  // of a tile's first key
    if (begin < end) {
        row = first_row(a, s, sequence, begin);
        fetch(true, begin, row, 0);
    }

#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
        const int key0 = tile * kTileKeys, buffer = tile & 1;
        float k_scales[2] = {},
              v_scales[2] = {};  // of the keys whose softmax this lane does; as fetch(), of keys that are there
        if constexpr (Source::kScaled)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int64_t key = row + min(max(lane + 32 * j, low - key0), min(high - key0, kTileKeys) - 1);
                k_scales[j] = __ldg(a.k.scales + kv_head * a.k.scale_stride + key);
                v_scales[j] = __ldg(a.v.scales + kv_head * a.v.scale_stride + key);
            }
        if (tile + 1 < end) next_row = first_row(a, s, sequence, tile + 1);  // early: loads depend on it
#pragma unroll 1
        for (int step = 0; step < kSteps; step += 4) {
            float k[4][8];
            Source::unpack(raw, a.k.element, k);
            fetch(step + 4 < kSteps, tile, row, step + 4 < kSteps ? step + 4 : 0);
#pragma unroll
            for (int r = 0; r < kQueries; ++r) {
                const float4 q0 = *reinterpret_cast<const float4*>(&queries[r][0][4 * part]);
                const float4 q1 = *reinterpret_cast<const float4*>(&queries[r][1][4 * part]);
                float dots[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float dot = q0.x * k[j][0];
                    dot = fmaf(q0.y, k[j][1], dot), dot = fmaf(q0.z, k[j][2], dot), dot = fmaf(q0.w, k[j][3], dot);
                    dot = fmaf(q1.x, k[j][4], dot), dot = fmaf(q1.y, k[j][5], dot);
                    dots[j] = fmaf(q1.w, k[j][7], fmaf(q1.z, k[j][6], dot));
                }
                const float score = sum_of_four<kLanes>(dots, part);
                if (part % (kLanes / 4) == 0) weights[buffer][r][mine + step + part / (kLanes / 4)] = score;
            }
        }
        __syncthreads();

#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int r = warp + kDecodeWarps * i;
            if (r >= kQueries) continue;
            const int pair = min(first + r, last), query = pair / heads_per_kv;
            const int visible = first_key(a, s, query) - key0, hidden = last_key(a, s, query) - key0;
            const float* bias = bias_row(a, kv_head * heads_per_kv + pair % heads_per_kv, query);
            float score[2], peak = top[i];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int key = lane + 32 * j;
                score[j] = -INFINITY;
                if (key < visible || key >= hidden) continue;
                score[j] = weights[buffer][r][key];
                if constexpr (Source::kScaled) score[j] *= k_scales[j];
                if (a.softcap > 0) score[j] = soft_cap(score[j], a.softcap * kLog2E, __fdividef(1.0f, a.softcap * kLog2E));
                if (bias != nullptr) score[j] += bias[key0 + key] * kLog2E;
                peak = fmaxf(peak, score[j]);
            }
            peak = warp_max(peak);
            const float base = base_of(peak), keep = exp2_fast(top[i] - base);
            float sum = 0;
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int key = lane + 32 * j;
                float weight = exp2_fast(score[j] - base);
                sum += weight;
                if constexpr (Source::kScaled) weight *= v_scales[j];
                weights[buffer][r][key] = weight;
            }
            total[i] = total[i] * keep + warp_sum(sum);
            top[i] = peak;
            if (lane == 0) shrink[buffer][r] = keep;
        }
        __syncthreads();

#pragma unroll
        for (int r = 0; r < kQueries; ++r) {
            const float keep = shrink[buffer][r];
            if (keep != 1)
#pragma unroll
                for (int e = 0; e < 8; ++e) sums[r][e] *= keep;
        }
#pragma unroll 1
        for (int step = 0; step < kSteps; step += 4) {
            float v[4][8];
            Source::unpack(raw, a.k.element, v);
            const bool more = step + 4 < kSteps;
            if (more || tile + 1 < end) fetch(!more, more ? tile : tile + 1, more ? row : next_row, more ? step + 4 : 0);
#pragma unroll
            for (int r = 0; r < kQueries; ++r) {
                const float4 w = *reinterpret_cast<const float4*>(&weights[buffer][r][mine + step]);
#pragma unroll
                for (int e = 0; e < 8; ++e)
                    sums[r][e] = fmaf(w.w, v[3][e], fmaf(w.z, v[2][e], fmaf(w.y, v[1][e], fmaf(w.x, v[0][e], sums[r][e]))));
            }
        }
        row = next_row;
    }

#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int r = warp + kDecodeWarps * i;
        if (r < kQueries && lane == 0) state[r][0] = top[i], state[r][1] = total[i];
    }
#pragma unroll
    for (int r = 0; r < kQueries; ++r) {
#pragma unroll
        for (int bits = kLanes; bits < 32; bits *= 2)
#pragma unroll
            for (int e = 0; e < 8; ++e) sums[r][e] += __shfl_xor_sync(0xffffffffu, sums[r][e], bits);
        if (group == 0) {
            float* to = &merged[warp][r][4 * part];
            *reinterpret_cast<float4*>(to) = make_float4(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
            *reinterpret_cast<float4*>(to + 4 * kLanes) = make_float4(sums[r][4], sums[r][5], sums[r][6], sums[r][7]);
        }
    }
    __syncthreads();
    const int width = padded_width(a.head_dim);
#pragma unroll 1
    for (int i = thread; i < kQueries * kSlots; i += kDecodeThreads) {
        const int r = i / kSlots, slot = i % kSlots;
        const int column = Source::offset(slot / (4 * kLanes), kLanes, slot % (4 * kLanes) / 4) + slot % 4;
        if (first + r > last || column >= a.head_dim) continue;
        const int64_t out_row = s.first_row + (first + r) / heads_per_kv;
        const int head = kv_head * heads_per_kv + (first + r) % heads_per_kv;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kDecodeWarps; ++w) sum += merged[w][r][slot];
        if (a.splits == 1) {  // no key: zeros
            a.out[out_row * a.out_stride + head * a.head_dim + column] =
                state[r][1] == 0 ? 0.0f : __fdividef(sum, state[r][1]);
            continue;
        }
        float* const partial = a.partials + ((out_row * a.heads + head) * a.splits + split) * (width + 2);
        partial[column] = sum;
        if (column == 0) partial[width] = state[r][0], partial[width + 1] = state[r][1];
    }
}

/// The splits of a row and head, in order. Bound by the latency of L2, so that 16 loads are on their way at once. grid: heads, queries,
/// sequences.
__global__ void __launch_bounds__(kDecodeThreads) merge_kernel(const Attention a) {
    constexpr int kAtOnce = 16;
    HB_SHARED_ARRAY(float, factors, [kAttentionSplits]);
    HB_SHARED_ARRAY(float, all, [1]);
    const int thread = threadIdx.x, head = blockIdx.x, query = blockIdx.y;
    const AttentionSequence s = a.sequences[blockIdx.z];
    if (s.rows > kDecodeRows || query >= s.rows) return;
    const int width = padded_width(a.head_dim);
    const int64_t row = s.first_row + query;
    const float* const partials = a.partials + (row * a.heads + head) * a.splits * (width + 2);
    if (thread < 32) {
        float peaks[2], totals[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int split = thread + 32 * j;
            peaks[j] = split < a.splits ? partials[split * (width + 2) + width] : -INFINITY;
            totals[j] = split < a.splits ? partials[split * (width + 2) + width + 1] : 0.0f;
        }
        const float base = base_of(warp_max(fmaxf(peaks[0], peaks[1])));
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const float factor = exp2_fast(peaks[j] - base);
            factors[thread + 32 * j] = factor;  // of a split that there is not: 0
            sum += totals[j] * factor;
        }
        sum = warp_sum(sum);
        if (thread == 0) all[0] = sum == 0 ? 0.0f : 1.0f / sum;
    }
    __syncthreads();
    for (int column = thread; column < a.head_dim; column += kDecodeThreads) {
        float sum = 0;
        for (int split = 0; split < a.splits; split += kAtOnce) {
            float part[kAtOnce];
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j)
                part[j] = split + j < a.splits ? partials[(split + j) * (width + 2) + column] : 0.0f;
#pragma unroll
            for (int j = 0; j < kAtOnce; ++j) sum = fmaf(part[j], factors[split + j], sum);
        }
        a.out[row * a.out_stride + head * a.head_dim + column] = sum * all[0];
    }
}

}  // namespace halfbyte::cuda::attention
