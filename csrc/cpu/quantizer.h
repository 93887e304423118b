// Activations on their way into products of integers: one row at a time, by any thread.
#pragma once

#include <array>
#include <atomic>
#include <optional>

#include "cpu/kernels.h"
#include "device/device.h"

namespace halfbyte::cpu {

/// Which integers the panels are multiplied with.
ActivationForm activation_form(const Panels& panels, Precision precision, const Kernels& kernels);

class Quantizer {
public:
    /// Of memory for so many rows in blocks of `block`, with room for a second term of every row.
    static size_t bytes(int64_t rows, int64_t cols, int64_t block);
    /// For rows first .. first + count of a matrix. with_sums: QuantizedRows::sums are wanted. memory: bytes(count, cols, block),
    /// 64-byte aligned; outlives this and what rows() gives.
    Quantizer(int64_t first, int64_t count, int64_t cols, int64_t block, ActivationForm form, bool with_sums, char* memory);
    /// Row r of the matrix.
    void quantize(const Kernels& kernels, int64_t r, const float* row);
    /// Once all rows are there.
    QuantizedRows rows() const;

private:
    int16_t* words(int64_t i) const { return reinterpret_cast<int16_t*>(values_ + i * q_.stride); }
    float* sums(int64_t i) const { return with_sums_ ? sums_ + i : nullptr; }

    int64_t first_, cols_, block_;
    bool with_sums_;
    QuantizedRows q_;
    uint8_t* values_;
    float *scales_, *sums_;
    int32_t *starts_, *rows_;
    std::atomic<int64_t> count_;
};

/// The same rows in every form and block that the weights of one call want.
class Quantizers {
public:
    class Wanted {
    public:
        void add(const Panels& panels, ActivationForm form);
        bool any() const { return used_ > 0; }
        size_t bytes(int64_t rows, int64_t cols) const;

    private:
        friend class Quantizers;
        struct Kind {
            ActivationForm form;
            int64_t block;
            bool sums;  // of activations, which offsets are multiplied with
        };
        static constexpr size_t kMost = 8;
        size_t index(const Panels& panels, ActivationForm form) const;  // kMost where there is none
        std::array<Kind, kMost> kinds_;
        size_t used_ = 0;
    };
    /// As Quantizer(); memory: wanted.bytes(count, cols). `wanted` outlives this.
    Quantizers(const Wanted& wanted, int64_t first, int64_t count, int64_t cols, char* memory);
    void quantize(const Kernels& kernels, int64_t r, const float* row);
    /// What panels that were added to `wanted` are multiplied with.
    QuantizedRows rows(const Panels& panels, ActivationForm form) const { return of_[wanted_.index(panels, form)]->rows(); }

private:
    const Wanted& wanted_;
    std::array<std::optional<Quantizer>, Wanted::kMost> of_;
};

}  // namespace halfbyte::cpu
