// Activations on their way into products of integers: one row at a time, by any thread.
#pragma once

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
        void add(const Panels& panels, ActivationForm form) {
            of_[form][index(panels.block)] = true;
            if (panels.offsets != nullptr) sums_[form][index(panels.block)] = true;
        }
        bool any() const;
        size_t bytes(int64_t rows, int64_t cols) const;

    private:
        friend class Quantizers;
        static constexpr int kBlocks = 3;  // 32, 64 and 128 columns that share a scale
        static int index(int64_t block) { return block == 32 ? 0 : block == 64 ? 1 : 2; }
        bool of_[kActivationForms][kBlocks] = {};
        bool sums_[kActivationForms][kBlocks] = {};  // of activations, which offsets are multiplied with
    };
    /// As Quantizer(); memory: wanted.bytes(count, cols).
    Quantizers(const Wanted& wanted, int64_t first, int64_t count, int64_t cols, char* memory);
    void quantize(const Kernels& kernels, int64_t r, const float* row);
    /// What panels that were added to `wanted` are multiplied with.
    QuantizedRows rows(const Panels& panels, ActivationForm form) const {
        return of_[form][Wanted::index(panels.block)]->rows();
    }

private:
    std::optional<Quantizer> of_[kActivationForms][Wanted::kBlocks];
};

}  // namespace halfbyte::cpu
