// The adapters of a batch: which rows name which, as the arrays that the kernels read.
#include <algorithm>

#include "cuda/cuda_device.h"

namespace halfbyte::cuda {

namespace {

Element element_of(DType dtype) {
    return dtype == DType::f32 ? Element::f32 : dtype == DType::f16 ? Element::f16 : Element::bf16;
}

AdapterEntry entry_of(const LinearAdapter& adapter, float weight) {
    const LoraFactors& lora = adapter.lora;
    AdapterEntry entry{};
    entry.a = lora.a.data, entry.b = lora.b.data;
    entry.a_element = element_of(lora.a_dtype), entry.b_element = element_of(lora.b_dtype);
    entry.rank = int32_t(lora.rank);
    entry.scale = lora.scale * weight, entry.weight = weight;
    entry.gain = static_cast<const float*>(adapter.gain.data);
    entry.shift = static_cast<const float*>(adapter.shift.data);
    entry.pivot_is_bias = !adapter.gain_of_bias;
    return entry;
}

/// The rows that have anything to do, each with its entries in order, and runs of rows with the same ones.
struct Pairs {
    std::vector<AdapterEntry> entries;
    std::vector<int32_t> rows, begin, pair_entry, segment_first, segment_end;
    int32_t max_rank = 0, max_segment = 0;
};

Pairs pairs_of(int64_t row_count, std::span<const LinearAdapter* const> adapters,
               std::span<const AdapterRows> adapter_rows) {
    Pairs pairs;
    std::vector<std::vector<int32_t>> of(static_cast<size_t>(row_count));
    for (size_t i = 0; i < adapters.size(); i++) {
        if (adapters[i] == nullptr) continue;
        const auto entry = int32_t(pairs.entries.size());
        pairs.entries.push_back(entry_of(*adapters[i], adapter_rows[i].weight));
        pairs.max_rank = std::max(pairs.max_rank, pairs.entries.back().rank);
        const AdapterRows& rows = adapter_rows[i];
        const int64_t count = rows.count == AdapterRows::kAll ? row_count : rows.count;
        for (int64_t r = 0; r < count; r++) {
            const int64_t row = rows.count == AdapterRows::kAll ? r : rows.rows[r];
            expect(row >= 0 && row < row_count, "adapt: row ", row, " of ", row_count);
            of[size_t(row)].push_back(entry);
        }
    }
    pairs.begin.push_back(0);
    const std::vector<int32_t>* last = nullptr;
    for (size_t row = 0; row < of.size(); row++) {
        if (of[row].empty()) continue;
        const auto position = int32_t(pairs.rows.size());
        if (last == nullptr || *last != of[row]) {
            pairs.segment_first.push_back(position);
            pairs.segment_end.push_back(position);
        }
        last = &of[row];
        pairs.rows.push_back(int32_t(row));
        pairs.pair_entry.insert(pairs.pair_entry.end(), of[row].begin(), of[row].end());
        pairs.begin.push_back(int32_t(pairs.pair_entry.size()));
        pairs.segment_end.back() = position + 1;
        pairs.max_segment = std::max(pairs.max_segment, pairs.segment_end.back() - pairs.segment_first.back());
    }
    return pairs;
}

}  // namespace

LoraFactors CudaDevice::upload_lora(const LoraMatrices& matrices) {
    LoraFactors factors;
    factors.a_dtype = matrices.a_dtype, factors.b_dtype = matrices.b_dtype;
    factors.rank = matrices.rank, factors.in = matrices.in, factors.out = matrices.out, factors.scale = matrices.scale;
    const size_t a_bytes = size_t(matrices.rank * matrices.in) * size_of(matrices.a_dtype);
    const size_t b_bytes = size_t(matrices.out * matrices.rank) * size_of(matrices.b_dtype);
    factors.a = core_->buffer(a_bytes, "an adapter");
    factors.b = core_->buffer(b_bytes, "an adapter");
    core_->copy_to_device(factors.a.data, matrices.a, a_bytes);
    core_->copy_to_device(factors.b.data, matrices.b, b_bytes);
    return factors;
}

void CudaDevice::adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters,
                       std::span<const AdapterRows> adapter_rows, const float* bias, Tensor y) {
    expect(adapters.size() == adapter_rows.size() && x.rows == y.rows, "adapt: ", adapters.size(), " adapters, ",
           adapter_rows.size(), " sets of rows, x of ", x.rows, " rows, y of ", y.rows);
    const Pairs pairs = pairs_of(x.rows, adapters, adapter_rows);
    if (pairs.rows.empty()) return;
    const auto held = core_->lock();
    Queue& queue = core_->queue();
    Adapt command{};
    command.x = x.data, command.x_stride = x.stride;
    command.y = y.data, command.y_stride = y.stride;
    command.bias = bias;
    command.in = int32_t(x.cols), command.out = int32_t(y.cols);
    command.entries = queue.stage(std::span<const AdapterEntry>(pairs.entries));
    command.rows = queue.stage(std::span<const int32_t>(pairs.rows));
    command.begin = queue.stage(std::span<const int32_t>(pairs.begin));
    command.pair_entry = queue.stage(std::span<const int32_t>(pairs.pair_entry));
    command.segment_first = queue.stage(std::span<const int32_t>(pairs.segment_first));
    command.segment_end = queue.stage(std::span<const int32_t>(pairs.segment_end));
    command.row_count = int32_t(pairs.rows.size()), command.pair_count = int32_t(pairs.pair_entry.size());
    command.segment_count = int32_t(pairs.segment_first.size()), command.max_segment = pairs.max_segment;
    command.max_rank = pairs.max_rank;
    if (pairs.max_rank > 0)
        command.low = static_cast<float*>(core_->scratch(pairs.pair_entry.size() * size_t(pairs.max_rank) * sizeof(float)));
    queue.push(Op::adapt, command);
}

}  // namespace halfbyte::cuda
