// Adapters of linear layers. A is kept in panels of 16 of its rows, [rank / 16][in][16], and B in panels of 16 outputs,
// [out / 16][rank][16]: in both products a vector holds 16 results, no sum runs across lanes, and memory is read once, in order.
#include "cpu/adapters.h"

#include <algorithm>
#include <cstring>

#include "cpu/cpu_device.h"
#include "cpu/memory.h"

namespace halfbyte::cpu {

namespace {

constexpr int64_t kInnerCols = 512;  // columns of A that are one piece of work: 16 KiB in 16 bits
constexpr int64_t kSmallInner =
    16 * 1024;  // elements of A (times rows) below which a second thread costs more than it saves

int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

/// matrix [rows][cols] -> panels [rows / 16][cols][16]; missing rows are zeros.
void interleave_rows(const char* matrix, int64_t rows, int64_t cols, size_t element, char* out) {
    std::memset(out, 0, size_t(panels_of(rows) * cols * kPanelRows) * element);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const int64_t to = (r / kPanelRows * cols + c) * kPanelRows + r % kPanelRows;
            std::memcpy(out + size_t(to) * element, matrix + size_t(r * cols + c) * element, element);
        }
}

const char* panel_at(const Buffer& buffer, DType dtype, int64_t elements) {
    return static_cast<const char*>(buffer.data) + size_t(elements) * size_of(dtype);
}

}  // namespace

LoraFactors CpuDevice::upload_lora(const LoraMatrices& m) {
    (void)float_kind(m.a_dtype), (void)float_kind(m.b_dtype);
    LoraFactors out{{}, {}, m.a_dtype, m.b_dtype, m.rank, m.in, m.out, m.scale};
    const auto pack = [this](const void* matrix, int64_t rows, int64_t cols, DType dtype) {
        Buffer buffer = allocate(size_t(panels_of(rows) * cols * kPanelRows) * size_of(dtype));
        interleave_rows(static_cast<const char*>(matrix), rows, cols, size_of(dtype), static_cast<char*>(buffer.data));
        return buffer;
    };
    out.a = pack(m.a, m.rank, m.in, m.a_dtype);
    out.b = pack(m.b, m.out, m.rank, m.b_dtype);
    return out;
}

AdapterCall::AdapterCall(const Kernels& kernels, std::span<const LinearPart> parts,
                         std::span<const AdapterRows> adapter_rows, int64_t rows)
    : kernels_(kernels), rows_(rows) {
    if (rows == 0) return;
    for (size_t p = 0; p < parts.size(); p++) {
        const LinearPart& part = parts[p];
        expect(part.adapters.empty() || part.adapters.size() == adapter_rows.size(), "linear: ", part.adapters.size(),
               " adapters and the rows of ", adapter_rows.size());
        for (size_t i = 0; i < part.adapters.size(); i++) {
            const LinearAdapter* adapter = part.adapters[i];
            const AdapterRows& of = adapter_rows[i];
            const bool all = of.count == AdapterRows::kAll;
            const int64_t count = all ? rows : of.count;
            if (adapter == nullptr || count == 0) continue;
            expect(adapter->lora.rank == 0 || adapter->lora.out == part.y.cols, "lora: B has ", adapter->lora.out,
                   " rows, y ", part.y.cols, " columns");
            expect(all || (of.rows[0] >= 0 && of.rows[count - 1] < rows), "linear: an adapter of row ",
                   all ? 0 : of.rows[count - 1], " of ", rows);
            expect(adapter->gain.data == nullptr || (!part.accumulate && of.weight == 1),
                   "linear: an adapter with a gain must stand alone, on outputs that nothing was added to");
            jobs_.push_back({adapter, p, part.bias, count == rows ? nullptr : of.rows, count, of.weight,
                             panels_of(adapter->lora.rank) * kPanelRows});
        }
    }
}

void AdapterCall::prepare(const Tensor& x, bool few_rows) {
    x_ = x, few_ = few_rows;
    pieces_ = few_rows ? (x.cols + kInnerCols - 1) / kInnerCols : 1;
    int64_t floats = 0;
    for (const Job& job : jobs_) {
        const LoraFactors& f = job.adapter->lora;
        expect(f.rank == 0 || f.in == x.cols, "lora: A has ", f.in, " columns, x ", x.cols);
        floats += pieces_ * job.count * job.stride;
    }
    auto* memory = static_cast<float*>(scratch(Scratch::lora, size_t(floats) * sizeof(float)));
    for (Job& job : jobs_) {
        job.inner = memory;
        memory += pieces_ * job.count * job.stride;
    }
}

/// out [last - first][stride], columns 16 * panel ... of it: A's panel times columns first_col .. last_col of the job's rows.
void AdapterCall::multiply(const Job& job, int64_t panel, int64_t first_col, int64_t last_col, int64_t first, int64_t last,
                           float* out) const {
    const LoraFactors& f = job.adapter->lora;
    const char* a = panel_at(f.a, f.a_dtype, (panel * f.in + first_col) * kPanelRows);
    const float* x = (job.rows == nullptr ? x_.row(first) : x_.data) + first_col;
    kernels_.lora_inner[float_kind(f.a_dtype)](a, x, x_.stride, job.rows == nullptr ? nullptr : job.rows + first,
                                               last - first, last_col - first_col, few_, f.scale * job.weight,
                                               out + panel * kPanelRows, job.stride);
}

void AdapterCall::multiply_all(ThreadPool& pool) const {
    int64_t items = 0;  // of (job, panel, piece)
    for (const Job& job : jobs_) items += job.stride / kPanelRows * pieces_;
    const auto run = [&](int64_t first, int64_t last) {
        for (const Job& job : jobs_) {
            const int64_t count = job.stride / kPanelRows * pieces_;
            for (int64_t item = first; item < std::min(last, count); item++) {
                const int64_t piece = item % pieces_, col = piece * kInnerCols;
                multiply(job, item / pieces_, col, std::min(col + kInnerCols, x_.cols), 0, job.count,
                         job.inner + piece * job.count * job.stride);
            }
            first = std::max<int64_t>(0, first - count), last -= count;
            if (last <= 0) return;
        }
    };
    if (items * kInnerCols * kPanelRows * rows_ < 2 * kSmallInner)
        run(0, items);
    else
        pool.parallel_for(items, 1, run);
    for (const Job& job : jobs_)
        for (int64_t piece = 1; piece < pieces_; piece++)
            kernels_.add(job.inner, job.inner + piece * job.count * job.stride, job.count * job.stride);
}

std::pair<int64_t, int64_t> AdapterCall::rows_within(const Job& job, int64_t first, int64_t last) {
    if (job.rows == nullptr) return {first, last};
    return {std::lower_bound(job.rows, job.rows + job.count, first) - job.rows,
            std::lower_bound(job.rows, job.rows + job.count, last) - job.rows};
}

void AdapterCall::multiply_rows(int64_t first, int64_t last) const {
    for (const Job& job : jobs_) {
        const auto [begin, end] = rows_within(job, first, last);
        for (int64_t panel = 0; begin < end && panel < job.stride / kPanelRows; panel++)
            multiply(job, panel, 0, x_.cols, begin, end, job.inner + begin * job.stride);
    }
}

void AdapterCall::prefetch(size_t part, int64_t first, int64_t last) const {
    for (const Job& job : jobs_) {
        if (job.part != part) continue;
        const LoraFactors& f = job.adapter->lora;
        const char* b = panel_at(f.b, f.b_dtype, first * f.rank * kPanelRows);
        const char* end = panel_at(f.b, f.b_dtype, last * f.rank * kPanelRows);
        for (; b < end; b += 64) __builtin_prefetch(b);
    }
}

void AdapterCall::gain_and_shift(const Job& job, const Tensor& y, int64_t first_col, int64_t last_col, int64_t begin,
                                 int64_t end) {
    const auto* gain = static_cast<const float*>(job.adapter->gain.data);
    const auto* shift = static_cast<const float*>(job.adapter->shift.data);
    const float* pivot = job.adapter->gain_of_bias ? nullptr : job.bias;
    for (int64_t i = begin; i < end; i++) {
        float* row = y.row(job.rows == nullptr ? i : job.rows[i]);
        if (gain != nullptr && pivot != nullptr)
            for (int64_t c = first_col; c < last_col; c++) row[c] = pivot[c] + gain[c] * (row[c] - pivot[c]);
        else if (gain != nullptr)
            for (int64_t c = first_col; c < last_col; c++) row[c] *= gain[c];
        if (shift != nullptr)
            for (int64_t c = first_col; c < last_col; c++) row[c] += job.weight * shift[c];
    }
}

void AdapterCall::apply(size_t part, const Tensor& y, int64_t first, int64_t last, int64_t first_row,
                        int64_t last_row) const {
    for (const Job& job : jobs_) {
        if (job.part != part) continue;
        const auto [begin, end] = rows_within(job, first_row, last_row);
        if (begin == end) continue;
        const LoraFactors& f = job.adapter->lora;
        const int64_t first_col = first * kPanelRows, last_col = std::min(last * kPanelRows, y.cols);
        if (f.rank > 0) {
            const char* b = panel_at(f.b, f.b_dtype, first_col * f.rank);
            kernels_.lora_outer[float_kind(f.b_dtype)](
                b, job.inner + begin * job.stride, job.stride, job.rows == nullptr ? nullptr : job.rows + begin, end - begin,
                f.rank, (job.rows == nullptr ? y.row(begin) : y.data) + first_col, y.stride, last_col - first_col);
        }
        gain_and_shift(job, y, first_col, last_col, begin, end);
    }
}

void CpuDevice::adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters,
                      std::span<const AdapterRows> adapter_rows, const float* bias, Tensor y) {
    expect(x.rows == y.rows, "lora: ", x.rows, " rows of x and ", y.rows, " of y");
    LinearPart part;
    part.y = y, part.bias = bias, part.adapters = adapters;
    AdapterCall call(kernels_, {&part, 1}, adapter_rows, x.rows);
    if (call.empty()) return;
    const bool few_rows = call.few_rows(pool_);
    call.prepare(x, few_rows);
    if (few_rows)
        call.multiply_all(pool_);
    else
        pool_.parallel_for(x.rows, 8, [&](int64_t first, int64_t last) { call.multiply_rows(first, last); });
    pool_.parallel_for(panels_of(y.cols), 1, [&](int64_t first, int64_t last) { call.apply(0, y, first, last, 0, y.rows); });
}

}  // namespace halfbyte::cpu
