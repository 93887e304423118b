#include "cpu/quantizer.h"

#include "core/error.h"
#include "cpu/memory.h"

namespace halfbyte::cpu {

namespace {

// A row whose integers are further than this from its activations (relative, root of the mean square) gets a second term. Rows
// spread like a normal distribution are at 1e-4, those of real models at 1e-4 to 2e-4, and rounding to bf16 is at 1.6e-3.
constexpr double kWorstRounding = 2.5e-4;

size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }
/// At least `count` floats, an odd number of cache lines: lines a multiple of 4 KiB apart would fight for the same places.
int64_t odd_lines(int64_t count) { return ((count + 15) / 16 | 1) * 16; }

}  // namespace

ActivationForm activation_form(const Panels& panels, Precision precision, const Kernels& kernels) {
    const bool bytes =
        precision == Precision::fast && kernels.quad_order != nullptr && panels.level_form != LevelForm::words;
    if (bytes) return kInt8;
    return panels.level_form == LevelForm::codes ? kForCodes : panels.level_form == LevelForm::bytes ? kForBytes : kForWords;
}

size_t Quantizer::bytes(int64_t rows, int64_t cols, int64_t block) {
    const size_t terms = size_t(2 * rows), blocks = size_t(cols / block);
    return round_up(terms * size_t(cols + 32) * sizeof(int16_t)) +
           3 * round_up(size_t(odd_lines(2 * rows)) * blocks * sizeof(float)) + round_up(terms * sizeof(int32_t));
}

Quantizer::Quantizer(int64_t first, int64_t count, int64_t cols, int64_t block, ActivationForm form, bool with_sums,
                     char* memory)
    : first_(first), cols_(cols), block_(block), with_sums_(with_sums), count_(count) {
    const int64_t capacity = form == kInt8 ? count : 2 * count, blocks = cols / block, stride = odd_lines(capacity);
    const auto take = [&](size_t bytes) {
        char* const taken = memory;
        memory += round_up(bytes);
        return taken;
    };
    // 64 bytes more than a row: rows that are a multiple of 4 KiB apart would fight for the same lines of the cache.
    q_.form = form, q_.stride = cols * (form == kInt8 ? 1 : 2) + 64;
    q_.scale_stride = stride, q_.main_count = count;
    q_.values = values_ = reinterpret_cast<uint8_t*>(take(size_t(capacity * q_.stride)));
    q_.scales = scales_ = reinterpret_cast<float*>(take(size_t(stride * blocks) * sizeof(float)));
    q_.sums = sums_ = reinterpret_cast<float*>(take(size_t(stride * blocks) * sizeof(float)));
    q_.starts = starts_ = reinterpret_cast<int32_t*>(take(size_t(stride * blocks) * sizeof(int32_t)));
    q_.rows = rows_ = reinterpret_cast<int32_t*>(take(size_t(capacity) * sizeof(int32_t)));
}

void Quantizer::quantize(const Kernels& kernels, int64_t r, const float* row) {
    const int64_t stride = q_.scale_stride, i = r - first_;
    rows_[i] = int32_t(r);
    if (q_.form == kInt8) {
        kernels.quantize_row8(row, cols_, block_, values_ + i * q_.stride, scales_ + i, sums(i), starts_ + i, stride);
        return;
    }
    const int limit = activation_max(q_.form);
    double error = 0, norm = 0;
    kernels.quantize_row(row, cols_, block_, limit, words(i), scales_ + i, sums(i), stride, &error, &norm);
    if (error <= kWorstRounding * kWorstRounding * norm) return;
    const int64_t extra = count_.fetch_add(1, std::memory_order_relaxed);
    auto* residual = static_cast<float*>(scratch(Scratch::residual, size_t(cols_) * sizeof(float)));
    kernels.quantize_residual(row, cols_, block_, words(i), scales_ + i, stride, residual);
    kernels.quantize_row(residual, cols_, block_, limit, words(extra), scales_ + extra, sums(extra), stride, &error, &norm);
    rows_[extra] = int32_t(r);
}

QuantizedRows Quantizer::rows() const {
    QuantizedRows q = q_;
    q.count = count_.load(std::memory_order_relaxed);
    return q;
}

void Quantizers::Wanted::add(const Panels& panels, ActivationForm form) {
    size_t at = index(panels, form);
    if (at == kMost) {
        if (used_ == kMost) fail(ErrorCode::internal, "linear: weights in more than ", used_, " kinds of blocks");
        at = used_++;
        kinds_[at] = {form, panels.block, false};
    }
    if (panels.offsets != nullptr) kinds_[at].sums = true;
}

size_t Quantizers::Wanted::index(const Panels& panels, ActivationForm form) const {
    for (size_t i = 0; i < used_; i++)
        if (kinds_[i].form == form && kinds_[i].block == panels.block) return i;
    return kMost;
}

size_t Quantizers::Wanted::bytes(int64_t rows, int64_t cols) const {
    size_t bytes = 1;
    for (size_t i = 0; i < used_; i++) bytes += Quantizer::bytes(rows, cols, kinds_[i].block);
    return bytes;
}

Quantizers::Quantizers(const Wanted& wanted, int64_t first, int64_t count, int64_t cols, char* memory) : wanted_(wanted) {
    for (size_t i = 0; i < wanted.used_; i++) {
        const Wanted::Kind& kind = wanted.kinds_[i];
        of_[i].emplace(first, count, cols, kind.block, kind.form, kind.sums, memory);
        memory += Quantizer::bytes(count, cols, kind.block);
    }
}

void Quantizers::quantize(const Kernels& kernels, int64_t r, const float* row) {
    for (size_t i = 0; i < wanted_.used_; i++) of_[i]->quantize(kernels, r, row);
}

}  // namespace halfbyte::cpu
