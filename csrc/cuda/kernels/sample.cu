// Sampling: the filters and the order of runtime/sampler.cpp without a sort. A row is cut into slices of kSliceTokens, one a block.
// The passes over the logits are launches of their own; each begins by reading what the one before it has counted:
//   greatest     the greatest logit, its least id, whether any is NaN or infinite
//   top_k        the k-th greatest key, a digit of 11, 11, 10 bits a pass: histograms of counts
//   top_p        histograms of weights: the key at which the weights of the greater ones reach top_p of all
//   draw         with top_p, tokens are drawn in descending order: the key at which they reach `uniform` of what is kept
//   slices       without top_p they are drawn in the order of their ids: the weights of each slice. With it, of equal keys, which
//                one counts: the number of them in each slice
//   finish       the slice, and the token in it
// Weights are float32 exponentials with 41 bits behind the point: integers, so that atomics give the same sum in any order. A row
// without a filter leaves its passes at once. Bound by the latency of eleven launches: a pass reads 4 bytes a token, from L2.
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/sample.cuh"

namespace halfbyte::cuda {

namespace {

/// grid, of all but finish_kernel: [slices, rows]
__global__ void __launch_bounds__(kSampleThreads)
    greatest_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    HB_SHARED_ARRAY(Amount, room, [kSampleThreads / 32]);
    const SampleView view(command, scratch, blockIdx.y);
    Amount top = 0;
    bool bad = false;
    for_tokens(view, [&](int token, float logit) {
        bad = bad || !(logit <= 3.402823466e38f);
        const Amount candidate = Amount(key_of(logit)) << 32 | (0xffffffffu - uint32_t(token));
        top = candidate > top ? candidate : top;
    });
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        const Amount other = __shfl_xor_sync(0xffffffffu, top, bits);
        top = other > top ? other : top;
    }
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = top;
    const bool any_bad = __syncthreads_or(bad) != 0;
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kSampleThreads / 32; ++w) top = room[w] > top ? room[w] : top;
    atomicMax(&view.state->top, top);
    if (any_bad) atomicOr(&view.state->bad, 1u);
}

/// What a pass counts: keys that begin as `prefix` does above `shift`, from low_key on.
struct Wanted {
    uint32_t prefix, low_key;
    int prefix_shift, shift;
};

/// Adds this block's slice to the histogram of (select, level). Sums of a block are kept as two halves of 32 bits, which shared
/// memory adds by itself.
template <bool kWeights>
__device__ __forceinline__ void count(const SampleView& view, Wanted wanted, Amount* histogram, bool with_min_p) {
    HB_SHARED_ARRAY(unsigned, low, [kBins]);
    HB_SHARED_ARRAY(unsigned, high, [kBins]);
    HB_SHARED_ARRAY(Amount, room, [kMaxWarps]);
    for (int i = int(threadIdx.x); i < kBins; i += kSampleThreads) low[i] = high[i] = 0;
    __syncthreads();
    const float top = view.top(), temperature = view.options.temperature, min_p = view.options.min_p;
    Amount left_by_min_p = 0;
    for_tokens(view, [&](int, float logit) {
        const uint32_t key = key_of(logit);
        if (key < wanted.low_key || (wanted.prefix_shift < 32 && key >> wanted.prefix_shift != wanted.prefix)) return;
        const uint32_t digit = key >> wanted.shift & (kBins - 1);
        if constexpr (kWeights) {
            const Weight weight = weight_of(logit, top, temperature);
            if (weight.low != 0) atomicAdd(&low[digit], weight.low);
            if (weight.high != 0) atomicAdd(&high[digit], weight.high);
            if (with_min_p && weight.value >= min_p) left_by_min_p += weight.amount();
        } else {
            atomicAdd(&low[digit], 1u);
        }
    });
    __syncthreads();
    for (int i = int(threadIdx.x); i < kBins; i += kSampleThreads) {
        const Amount sum = (Amount(high[i]) << kLowBits) + low[i];
        if (sum != 0) atomicAdd(&histogram[i], sum);
    }
    if (kWeights && with_min_p) {
        const Amount sum = block_sum(left_by_min_p, room);
        if (threadIdx.x == 0 && sum != 0) atomicAdd(&view.state->min_p_weight, sum);
    }
}

/// Which keys level `level` of a select looks at, `cut` being what the level before it found. The last digit has 10 bits: the one
/// bit too many that is counted with it is known and the same in all.
__device__ __forceinline__ Wanted wanted_at(int level, SampleCut cut, uint32_t low_key) {
    const int above = level == 0 ? 32 : shift_of(level - 1);
    return {level == 0 ? 0 : cut.key >> above, low_key, above, shift_of(level)};
}

template <int kLevel>
__global__ void __launch_bounds__(kSampleThreads)
    top_k_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    const SampleView view(command, scratch, blockIdx.y);
    if (!view.drawn() || !view.has_top_k()) return;
    SampleCut cut{};
    if constexpr (kLevel == 1) {
        const auto target = Amount(view.options.top_k - 1);
        cut = descend(view, Select::top_k, 0, [target](Amount) { return target; });
    }
    if constexpr (kLevel == 2) cut = descend_left(view, Select::top_k, 1);
    count<false>(view, wanted_at(kLevel, cut, 0), view.histogram(Select::top_k, kLevel), false);
}

template <int kLevel>
__global__ void __launch_bounds__(kSampleThreads)
    top_p_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    const SampleView view(command, scratch, blockIdx.y);
    if (!view.drawn()) return;
    SampleCut cut{};
    uint32_t low_key;
    if constexpr (kLevel > 0) {
        low_key = view.state->low_key;
    } else {
        low_key = view.has_top_k() ? descend_left(view, Select::top_k, 2).key : 0;
        if (blockIdx.x == 0 && threadIdx.x == 0) view.state->low_key = low_key;
    }
    if (!view.has_top_p()) return;
    if constexpr (kLevel == 1) {
        // A token stays as long as those above it do not reach top_p of all: the last one is that which does.
        const double top_p = double(view.options.top_p);
        const auto target = [top_p](Amount total) { return target_of_top_p(top_p, total); };
        cut = descend(view, Select::top_p, 0, target);
    }
    if constexpr (kLevel == 2) cut = descend_left(view, Select::top_p, 1);
    count<true>(view, wanted_at(kLevel, cut, low_key), view.histogram(Select::top_p, kLevel),
                kLevel == 0 && view.options.min_p > 0);
}

template <int kLevel>
__global__ void __launch_bounds__(kSampleThreads)
    draw_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    const SampleView view(command, scratch, blockIdx.y);
    if (!view.drawn() || !view.has_top_p()) return;
    SampleCut cut{};
    if constexpr (kLevel == 1) {
        // top_p's last token is the first so many of those with its key. What min_p leaves begins at the top as well: the less of
        // both is what both leave.
        const SampleCut last = descend_left(view, Select::top_p, 2);
        const double top_p = double(view.options.top_p);
        const Amount one = weight_of(logit_of(last.key), view.top(), view.options.temperature).amount();
        const Amount min_p_weight = view.options.min_p > 0 ? view.state->min_p_weight : ~Amount(0);
        const double uniform = view.options.uniform;
        const auto target = [=](Amount total) {
            const Amount up_to = target_of_top_p(top_p, total);
            const Amount rounded = up_to - last.left + (one > 0 ? (last.left / one + 1) * one : 0);
            const Amount kept = rounded < min_p_weight ? rounded : min_p_weight;
            return target_of(uniform * double(kept), kept);
        };
        cut = descend(view, Select::draw, 0, target);
    } else {
        cut = descend_left(view, Select::draw, 1);
    }
    count<true>(view, wanted_at(kLevel, cut, view.state->low_key), view.histogram(Select::draw, kLevel), false);
}

/// What a token counts in the order of ids, once the keys are known.
struct InOrder {
    float top, temperature, min_p;
    uint32_t low_key, key;
    bool equal_key;
    __device__ __forceinline__ Amount operator()(float logit) const {
        if (equal_key) return key_of(logit) == key;
        if (key_of(logit) < low_key) return 0;
        const Weight weight = weight_of(logit, top, temperature);
        return weight.value >= min_p ? weight.amount() : 0;
    }
};
__device__ __forceinline__ InOrder in_order(const SampleView& view, uint32_t key) {
    return {view.top(), view.options.temperature, view.options.min_p, view.state->low_key, key, view.has_top_p()};
}

__global__ void __launch_bounds__(kSampleThreads)
    slices_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    HB_SHARED_ARRAY(Amount, room, [kMaxWarps]);
    const SampleView view(command, scratch, blockIdx.y);
    if (!view.drawn()) return;
    const InOrder order = in_order(view, view.has_top_p() ? descend_left(view, Select::draw, 2).key : 0);
    Amount sum = 0;
    for_tokens(view, [&](int, float logit) { sum += order(logit); });
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) view.slices[blockIdx.x] = sum;
}

/// grid: [1, rows]
__global__ void __launch_bounds__(kSampleThreads)
    finish_kernel(const __grid_constant__ Sample command, const __grid_constant__ SampleScratch scratch) {
    const SampleView view(command, scratch, blockIdx.y);
    if (!view.drawn()) {
        const auto greatest = int32_t(0xffffffffu - uint32_t(view.state->top));
        if (threadIdx.x == 0) command.tokens[blockIdx.y] = view.failed() ? -1 : greatest;
        return;
    }
    const SampleCut cut = view.state->cut[int(Select::draw)][2];
    const InOrder order = in_order(view, cut.key);
    const Amount one = weight_of(logit_of(cut.key), order.top, order.temperature).amount();
    const Amount* slices = view.slices;
    const double uniform = view.options.uniform;
    const auto target = [&](Amount total) {
        return order.equal_key ? (one > 0 ? cut.left / one : 0) : target_of(uniform * double(total), total);
    };
    const Found slice = find(scratch.slice_count, [slices](int i) { return slices[i]; }, target);
    const int first = slice.index * kSliceTokens;
    const float* logits = view.logits + first;
    const auto value = [&](int i) { return order(logits[i]); };
    const Found token = find(min(kSliceTokens, view.vocab - first), value, [&](Amount) { return slice.left; });
    if (threadIdx.x == 0) command.tokens[blockIdx.y] = first + token.index;
}

int slices_of(int32_t vocab) { return (vocab + kSliceTokens - 1) / kSliceTokens; }

}  // namespace

size_t sample_scratch_bytes(int32_t count, int32_t vocab) {
    if (count <= 0 || vocab <= 0) return 0;
    return size_t(count) * (sizeof(SampleState) + sizeof(Amount) * (size_t(kHistograms) * kBins + size_t(slices_of(vocab))));
}

cudaError_t run(const Sample& command, cudaStream_t stream) {
    if (command.count < 0 || command.vocab <= 0 || command.vocab > kMostTokens) return cudaErrorInvalidValue;
    if (command.count == 0) return cudaSuccess;
    if (command.scratch == nullptr || reinterpret_cast<uintptr_t>(command.scratch) % alignof(SampleState) != 0)
        return cudaErrorInvalidValue;
    SampleScratch scratch;
    scratch.slice_count = slices_of(command.vocab);
    scratch.states = static_cast<SampleState*>(command.scratch);
    scratch.histograms = reinterpret_cast<Amount*>(scratch.states + command.count);
    scratch.slices = scratch.histograms + size_t(command.count) * kHistograms * kBins;
    cudaError_t error = cudaMemsetAsync(command.scratch, 0, sample_scratch_bytes(command.count, command.vocab), stream);
    const dim3 grid(unsigned(scratch.slice_count), unsigned(command.count));
    using Kernel = void (*)(Sample, SampleScratch);
    const Kernel passes[] = {&greatest_kernel, &top_k_kernel<0>, &top_k_kernel<1>, &top_k_kernel<2>, &top_p_kernel<0>,
                             &top_p_kernel<1>, &top_p_kernel<2>, &draw_kernel<1>,  &draw_kernel<2>,  &slices_kernel};
    for (const Kernel pass : passes)
        if (error == cudaSuccess) error = launch(pass, grid, dim3(kSampleThreads), 0, stream, command, scratch);
    if (error != cudaSuccess) return error;
    return launch(&finish_kernel, dim3(1, unsigned(command.count)), dim3(kSampleThreads), 0, stream, command, scratch);
}

}  // namespace halfbyte::cuda
