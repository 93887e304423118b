// Every instruction set that can run here, or those that the arguments name: all ops at odd sizes, 1 to 3 threads, each precision.
#include "values.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "core/error.h"
#include "device/isa.h"

namespace values {

namespace {
std::mt19937 generator(1);
int failure_count = 0;
int64_t compared_count = 0;
}  // namespace

std::vector<float> random_floats(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> result(static_cast<size_t>(n));
    for (float& value : result) value = normal(generator);
    return result;
}
int64_t random_below(int64_t n) { return int64_t(generator() % uint32_t(n)); }
int failures() { return failure_count; }
int64_t compared() { return compared_count; }

void fail(const Subject& subject, const std::string& what, const std::string& how) {
    std::printf("%s: %s: %s\n", subject.device->description().c_str(), what.c_str(), how.c_str());
    failure_count++;
}

void compare(const Subject& subject, const std::string& what, const std::vector<float>& found, const Expected& expected) {
    compared_count += int64_t(found.size());
    for (size_t i = 0; i < found.size(); i++) {
        const double value = expected.value[i], miss = std::fabs(double(found[i]) - value);
        if (std::isnan(value) ? std::isnan(found[i]) : double(found[i]) == value || miss <= expected.bound[i]) continue;
        char text[200];
        std::snprintf(text, sizeof text, "[%lld, %lld]: row %lld, column %lld is %.9g, expected %.9g within %.2g",
                      (long long)expected.rows, (long long)expected.cols, (long long)i / expected.cols,
                      (long long)i % expected.cols, double(found[i]), value, expected.bound[i]);
        return fail(subject, what, text);
    }
}

void compare_mean(const Subject& subject, const std::string& what, const std::vector<float>& found, const Expected& expected,
                  double limit) {
    double errors = 0, squares = 0;
    for (size_t i = 0; i < found.size(); i++) {
        errors += std::pow(double(found[i]) - expected.value[i], 2), squares += std::pow(expected.value[i], 2);
    }
    if (!(std::sqrt(errors / squares) > limit)) return;
    fail(subject, what,
         "relative error " + std::to_string(std::sqrt(errors / squares)) + ", at most " + std::to_string(limit));
}

}  // namespace values

int main(int count, char** arguments) {
    using namespace values;
    using halfbyte::Precision;
    std::vector<std::string> names(arguments + 1, arguments + count);
    if (names.empty()) {
        names = halfbyte::instruction_sets();
        for (const char* name : {"avx512_emulated", "avx_vnni_evex"}) names.emplace_back(name);  // HALFBYTE_EMULATED_ISA
    }
    std::vector<Subject> subjects;
    for (const std::string& name : names) {
        setenv("HALFBYTE_ISA", name.c_str(), 1);
        int threads = 0;
        for (const Precision precision : {Precision::float32, Precision::fast, Precision::high}) {
            std::shared_ptr<halfbyte::Device> device;
            try {
                device = halfbyte::make_device("cpu", {++threads, precision});
            } catch (const halfbyte::Error& error) {
                if (count == 1 && name.starts_with("avx")) break;  // not of this build or machine, and nobody asked for it
                std::printf("%s\n", error.what());
                return 1;
            }
            std::printf("%s\n", device->description().c_str());
            if (!device->description().starts_with("cpu " + name + ",")) return 1;
            subjects.push_back({name, precision, device});
        }
    }
    linear(subjects, 100, 96, 33);                                // more rows than a kernel keeps at a time
    for (const int64_t m : {1, 9}) linear(subjects, m, 768, 33);  // blocks of 256
    for (const int64_t m : {1, 2, 7, 13, 29})
        for (const int64_t k : {1, 17, 32, 96, 192, 640}) {
            for (const int64_t n : {1, 15, 33}) linear(subjects, m, k, n);
            lora(subjects, m, k, 33);
            rowwise(subjects, m, k);
        }
    for (const int64_t m : {1, 2, 7, 13, 70})
        for (const int64_t dim : {2, 20, 64, 80}) {
            attention(subjects, m, dim);
            rope(subjects, m, dim);
        }
    nan_stays_in_its_row(subjects);
    special_values(subjects);
    std::printf("%lld numbers compared, %d failures\n", (long long)compared(), failures());
    return failures() == 0 && compared() > 0 ? 0 : 1;
}
