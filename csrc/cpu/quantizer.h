// Activations on their way into products of integers: one row at a time, by any thread.
#pragma once

#include <atomic>

#include "cpu/kernels.h"
#include "device/device.h"

namespace halfbyte::cpu {

/// Which integers the panels are multiplied with.
ActivationForm activation_form(const Panels& panels, Precision precision, const Kernels& kernels);

class Quantizer {
public:
    /// Of memory for a matrix like x in blocks of `block`, with room for a second term of every row.
    static size_t bytes(const Tensor& x, int64_t block);
    /// memory: bytes(x, block), 64-byte aligned; outlives this and what rows() gives. Only the shape of x is read.
    Quantizer(const Tensor& x, int64_t block, ActivationForm form, char* memory);
    void quantize(const Kernels& kernels, int64_t r, const float* row);
    /// Once all rows are there.
    QuantizedRows rows() const;

private:
    int16_t* words(int64_t r) const { return reinterpret_cast<int16_t*>(values_ + r * q_.stride); }

    int64_t cols_, block_;
    QuantizedRows q_;
    uint8_t* values_;
    float *scales_, *sums_;
    int32_t *starts_, *rows_;
    std::atomic<int64_t> count_;
};

}  // namespace halfbyte::cpu
