#include "runtime/dora.h"

#include <cmath>
#include <mutex>

#include "storage/storage.h"

namespace halfbyte {

namespace {

/// row [cols] of w, += scale * the sum over the rank of left[k] * right[k][:].
void merged_row(const Weight& w, int64_t row, const float* left, std::span<const float> right, int64_t rank, float scale,
                std::vector<float>& out) {
    w.storage->decode_row(w, row, out.data());
    for (int64_t k = 0; k < rank; k++) {
        const float factor = scale * left[k];
        const float* add = right.data() + k * w.cols;
        for (int64_t c = 0; c < w.cols; c++) out[size_t(c)] += factor * add[c];
    }
}

}  // namespace

std::vector<float> row_lengths(const Weight& w, std::span<const float> a, std::span<const float> b, int64_t rank,
                               float scale, ThreadPool& pool) {
    std::vector<float> lengths(static_cast<size_t>(w.rows));
    pool.parallel_for(w.rows, 16, [&](int64_t first, int64_t last) {
        std::vector<float> row(static_cast<size_t>(w.cols));
        for (int64_t r = first; r < last; r++) {
            merged_row(w, r, b.data() + r * rank, a, rank, scale, row);
            double sum = 0;
            for (const float value : row) sum += double(value) * double(value);
            lengths[size_t(r)] = float(std::sqrt(sum));
        }
    });
    return lengths;
}

std::vector<float> column_lengths(const Weight& w, std::span<const float> a, std::span<const float> b, int64_t rank,
                                  float scale, ThreadPool& pool) {
    std::vector<double> sums(static_cast<size_t>(w.cols));
    std::mutex mutex;
    pool.parallel_for(w.rows, 1024, [&](int64_t first, int64_t last) {
        std::vector<float> row(static_cast<size_t>(w.cols));
        std::vector<double> mine(static_cast<size_t>(w.cols));
        for (int64_t r = first; r < last; r++) {
            merged_row(w, r, a.data() + r * rank, b, rank, scale, row);
            for (size_t c = 0; c < row.size(); c++) mine[c] += double(row[c]) * double(row[c]);
        }
        const std::lock_guard lock(mutex);
        for (size_t c = 0; c < mine.size(); c++) sums[c] += mine[c];
    });
    std::vector<float> lengths;
    for (const double sum : sums) lengths.push_back(float(std::sqrt(sum)));
    return lengths;
}

}  // namespace halfbyte
