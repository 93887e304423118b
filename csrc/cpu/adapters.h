// The adapters of one linear call: A x for every adapter and part first; B (A x), gains and shifts when a part's outputs are
// written.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "device/device.h"

namespace halfbyte::cpu {

class AdapterCall {
public:
    AdapterCall(const Kernels& kernels, std::span<const LinearPart> parts, std::span<const AdapterRows> adapter_rows,
                int64_t rows);
    bool empty() const { return jobs_.empty(); }
    /// True where rows are so few that A is what must be shared among threads; otherwise rows are.
    bool few_rows(const ThreadPool& pool) const { return rows_ < 16 * pool.threads(); }
    /// Before the first call of what follows. x: [rows, k], what A multiplies; read later, and outlives this.
    void prepare(const Tensor& x, bool few_rows);
    /// Few rows: A x of all rows, in one parallel region if there is enough of it.
    void multiply_all(ThreadPool& pool) const;
    /// Many rows: A x of rows first .. last. Any thread.
    void multiply_rows(int64_t first, int64_t last) const;
    /// Asks the memory for what apply() will read; worth while where B is read for few rows.
    void prefetch(size_t part, int64_t first, int64_t last) const;
    /// What the adapters make of y of part `part`: columns 16 * first .. 16 * last of rows first_row .. last_row. Any thread, once
    /// A x of these rows is complete.
    void apply(size_t part, const Tensor& y, int64_t first, int64_t last, int64_t first_row, int64_t last_row) const;

private:
    struct Job {
        const LinearAdapter* adapter;
        size_t part;
        const float* bias;    ///< of the part, or null
        const int32_t* rows;  ///< [count], ascending; null: all rows
        int64_t count;
        float weight;
        int64_t stride;          ///< rank in whole panels; 0 without A and B
        float* inner = nullptr;  ///< [pieces][count][stride] scale * A x; the sum of the pieces ends up in the first one
    };
    /// The rows of a job among first .. last, as a range of its own count.
    static std::pair<int64_t, int64_t> rows_within(const Job& job, int64_t first, int64_t last);
    static void gain_and_shift(const Job& job, const Tensor& y, int64_t first_col, int64_t last_col, int64_t begin,
                               int64_t end);
    void multiply(const Job& job, int64_t panel, int64_t first_col, int64_t last_col, int64_t first, int64_t last,
                  float* out) const;

    const Kernels& kernels_;
    int64_t rows_;
    Tensor x_;
    bool few_ = false;
    int64_t pieces_ = 1;  // of the columns of A
    std::vector<Job> jobs_;
};

}  // namespace halfbyte::cpu
