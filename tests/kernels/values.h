// The values of every op against float64, in C++ alone: for machines that run no Python tests, an emulated one above all. A bound
// is the worst case of the arithmetic, whatever the order of its sums; the tighter statistical ones are in the Python tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace values {

/// Half a unit in the last place of float32, relative: what one rounding may cost.
constexpr double kRounding = 0x1p-24;

/// One device under test: an instruction set, a precision, 1 to 3 threads.
struct Subject {
    std::string isa;
    halfbyte::Precision precision;
    std::shared_ptr<halfbyte::Device> device;
};

std::vector<float> random_floats(int64_t n);
int64_t random_below(int64_t n);

/// [rows][cols] of float64 and how far from it a result may be.
struct Expected {
    int64_t rows, cols;
    std::vector<double> value, bound;

    Expected(int64_t rows_, int64_t cols_)
        : rows(rows_), cols(cols_), value(size_t(rows_ * cols_)), bound(size_t(rows_ * cols_)) {}
    size_t at(int64_t row, int64_t col) const { return size_t(row * cols + col); }
};

/// Counts a failure and prints the first miss. NaN is expected where `value` is NaN, and an infinity where it is one.
void compare(const Subject& subject, const std::string& what, const std::vector<float>& found, const Expected& expected);
/// Root of the mean square error over that of the values, at most `limit`.
void compare_mean(const Subject& subject, const std::string& what, const std::vector<float>& found, const Expected& expected,
                  double limit);
void fail(const Subject& subject, const std::string& what, const std::string& how);
int failures();
int64_t compared();  ///< numbers so far

// Each makes its inputs and float64 results once, and runs every subject on them.
void linear(const std::vector<Subject>& subjects, int64_t m, int64_t k, int64_t n);
void lora(const std::vector<Subject>& subjects, int64_t m, int64_t k, int64_t n);
void nan_stays_in_its_row(const std::vector<Subject>& subjects);
void rowwise(const std::vector<Subject>& subjects, int64_t m, int64_t k);
void rope(const std::vector<Subject>& subjects, int64_t m, int64_t dim);
void special_values(const std::vector<Subject>& subjects);
void attention(const std::vector<Subject>& subjects, int64_t m, int64_t dim);

}  // namespace values
