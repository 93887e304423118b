// A token from a row of logits by selection in place of sorting: see sample.cu for the order of the passes.
#pragma once

#include "cuda/commands.h"
#include "cuda/kernels/block.cuh"

namespace halfbyte::cuda {

/// A count of tokens, or a sum of weights in units of 2^-41: integers, whose sums do not depend on their order.
using Amount = unsigned long long;

constexpr int kSampleThreads = 256;
constexpr int kSliceTokens = 2048;    // of a block
constexpr int kBins = 2048;           // of a histogram: digits of 11, 11 and 10 bits of a key, from its top
constexpr int kHighBits = 20;         // of a weight below 1, and kLowBits below them: a block's sums of either fit 32 bits,
constexpr int kLowBits = 21;          // those of a slice of ones as well
constexpr int kMostTokens = 1 << 21;  // so that all weights together are below 2^63

enum class Select : int { top_k, top_p, draw };

/// What was found in a row's histograms so far.
struct SampleCut {
    uint32_t key;  ///< its digits that are known
    uint32_t unused;
    Amount left;  ///< of the target, less all that is above the digits known
};

/// Of a row, cleared at first.
struct SampleState {
    Amount top;           ///< key of the greatest logit, and behind it 2^32 - 1 - the least id that has it
    Amount min_p_weight;  ///< of all tokens that min_p leaves
    uint32_t bad;         ///< a logit is NaN or +infinity
    uint32_t low_key;     ///< what top_k leaves: keys from this on
    SampleCut cut[3][3];  ///< [Select][level]
    Amount target[3];     ///< [Select]: found is the first token up to which, in descending order, there is more than this
};

/// Memory of a call: [count] states, [count][8] histograms, [count][slices] sums.
struct SampleScratch {
    SampleState* states;
    Amount* histograms;
    Amount* slices;
    int slice_count;
};
constexpr int kHistograms = 8;

/// Of a select at a level; the first level of a draw has the histogram of top_p's.
__device__ __forceinline__ int histogram_of(Select select, int level) {
    return select == Select::draw ? (level == 0 ? 3 : 5 + level) : 3 * int(select) + level;
}
__device__ __forceinline__ int shift_of(int level) { return level == 0 ? 21 : level == 1 ? 10 : 0; }

/// In the order of the logits; -0 as +0.
__device__ __forceinline__ uint32_t key_of(float logit) {
    const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

struct Weight {
    float value;
    uint32_t high, low;  ///< of its 41 bits; a weight of 1 is exact, and so are sums of equal ones
    __device__ __forceinline__ Amount amount() const { return (Amount(high) << kLowBits) + low; }
};
__device__ __forceinline__ Weight weight_of(float logit, float top, float temperature) {
    Weight out;
    out.value = expf((logit - top) / temperature);
    const float scaled = out.value * float(1 << kHighBits);
    out.high = uint32_t(scaled);
    out.low = uint32_t((scaled - float(out.high)) * float(1 << kLowBits));
    return out;
}

/// What does not change of a row.
struct SampleView {
    const float* logits;
    SampleRow options;
    SampleState* state;
    Amount* histograms;
    Amount* slices;
    int vocab;

    __device__ __forceinline__ SampleView(const Sample& command, const SampleScratch& scratch, unsigned row)
        : logits(command.logits + int64_t(row) * command.logits_stride),
          options(command.rows[row]),
          state(scratch.states + row),
          histograms(scratch.histograms + int64_t(row) * kHistograms * kBins),
          slices(scratch.slices + int64_t(row) * scratch.slice_count),
          vocab(command.vocab) {}
    __device__ __forceinline__ bool has_top_k() const { return options.top_k > 0 && options.top_k < vocab; }
    __device__ __forceinline__ bool has_top_p() const { return options.top_p < 1.0f; }
    __device__ __forceinline__ float top() const { return logit_of(uint32_t(state->top >> 32)); }
    /// Nothing to choose from.
    __device__ __forceinline__ bool failed() const { return state->bad != 0 || !(top() >= -3.402823466e38f); }
    __device__ __forceinline__ bool drawn() const { return options.temperature > 0 && !failed(); }
    __device__ __forceinline__ Amount* histogram(Select select, int level) const {
        return histograms + histogram_of(select, level) * kBins;
    }
};

struct Found {
    int index;
    Amount left, total;
};

/// The first of n amounts up to which there is more than target(total), and what of the target is left before it. All threads of a
/// block of kSampleThreads; the same result in all.
template <class Value, class Target>
__device__ __forceinline__ Found find(int n, Value value, Target target) {
    HB_SHARED_ARRAY(Amount, warp_sums, [kSampleThreads / 32]);
    HB_SHARED_ARRAY(Amount, left, [1]);
    HB_SHARED_ARRAY(int, index, [1]);
    const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int each = (n + kSampleThreads - 1) / kSampleThreads;
    const int first = min(n, thread * each), last = min(n, first + each);
    Amount mine = 0;
    for (int i = first; i < last; ++i) mine += value(i);
    Amount through = mine;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        const Amount before = __shfl_up_sync(0xffffffffu, through, by);
        if (lane >= by) through += before;
    }
    __syncthreads();  // an earlier call's results have been read
    if (lane == 31) warp_sums[warp] = through;
    if (thread == 0) index[0] = 0, left[0] = 0;
    __syncthreads();
    Amount total = 0, before = through - mine;
#pragma unroll
    for (int w = 0; w < kSampleThreads / 32; ++w) {
        if (w < warp) before += warp_sums[w];
        total += warp_sums[w];
    }
    const Amount wanted = target(total);
    if (before <= wanted && wanted < before + mine) {
        Amount rest = wanted - before;
        int i = first;
        for (; i + 1 < last; ++i) {
            const Amount here = value(i);
            if (rest < here) break;
            rest -= here;
        }
        index[0] = i, left[0] = rest;
    }
    __syncthreads();
    return {index[0], left[0], total};
}

/// A fraction of a total as a target: below the total.
__device__ __forceinline__ Amount target_of(double part, Amount total) {
    const Amount target = part > 0 ? Amount(part) : 0;
    return target < total ? target : total - (total > 0);
}

/// That of the token with which the weights from the top reach top_p of all. (Doubles this great have no neighbours at 1: the
/// subtraction is one of integers.)
__device__ __forceinline__ Amount target_of_top_p(double top_p, Amount total) {
    const auto reached = Amount(ceil(top_p * double(total)));
    return reached == 0 ? 0 : (reached < total ? reached : total) - 1;
}

/// Looks through the histogram of (select, level) from the greatest digit down. The first block of a row writes it down.
template <class Target>
__device__ __forceinline__ SampleCut descend(const SampleView& view, Select select, int level, Target target) {
    const Amount* bins = view.histogram(select, level);
    const Found found = find(kBins, [bins](int i) { return bins[kBins - 1 - i]; }, target);
    SampleCut cut{};
    cut.key = level == 0 ? 0 : view.state->cut[int(select)][level - 1].key;
    cut.key |= uint32_t(kBins - 1 - found.index) << shift_of(level);
    cut.left = found.left;
    if (blockIdx.x == 0 && threadIdx.x == 0) view.state->cut[int(select)][level] = cut;
    return cut;
}
__device__ __forceinline__ SampleCut descend_left(const SampleView& view, Select select, int level) {
    const Amount left = view.state->cut[int(select)][level - 1].left;
    return descend(view, select, level, [left](Amount) { return left; });
}

/// f(token, logit) for this thread's tokens of the slice blockIdx.x.
template <class F>
__device__ __forceinline__ void for_tokens(const SampleView& view, F f) {
    const bool vector = reinterpret_cast<uintptr_t>(view.logits) % 16 == 0;
    const int first = int(blockIdx.x) * kSliceTokens;
#pragma unroll 1
    for (int at = 4 * int(threadIdx.x); at < kSliceTokens; at += 4 * kSampleThreads) {
        const int c = first + at;
        const float4 v = vector && c + 3 < view.vocab ? *reinterpret_cast<const float4*>(view.logits + c)
                                                      : load4<false>(view.logits, c, view.vocab);
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (c + i < view.vocab) f(c + i, values[i]);
    }
}

}  // namespace halfbyte::cuda
