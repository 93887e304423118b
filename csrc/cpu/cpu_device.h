// The CPU as a Device: checks, splits the work over threads, calls the kernels of the chosen instruction set.
#pragma once

#include <string>

#include "core/error.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "device/device.h"

namespace halfbyte::cpu {

/// Throws Error internal "cpu <op>: <parts>" where a shape contradicts the contract of device.h.
template <class... Parts>
void expect(bool condition, const Parts&... parts) {
    if (!condition) fail(ErrorCode::internal, "cpu ", parts...);
}

inline void expect_same_shape(const Tensor& a, const Tensor& b, const char* op) {
    expect(a.rows == b.rows && a.cols == b.cols, op, ": shapes differ: [", a.rows, ", ", a.cols, "] and [", b.rows, ", ",
           b.cols, "]");
}

/// Below so many elements a second thread costs more than it saves (a fork and join is about 2 microseconds).
constexpr int64_t kMinimumWork = 16384;

/// Up to so many rows, transposing float weights costs more than it gains.
constexpr int64_t kFewFloatRows = 8;

inline FloatKind float_kind(DType dtype) {
    expect(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, "linear: a float weight in ", name_of(dtype));
    return dtype == DType::f32 ? kF32 : dtype == DType::f16 ? kF16 : kBf16;
}

class AdapterCall;

class CpuDevice final : public Device {
public:
    CpuDevice(const DeviceOptions& options, const Isa& isa)
        : precision_(options.precision), isa_(isa), kernels_(*isa.kernels), pool_(options.threads) {}

    std::string description() const override;
    Precision precision() const override { return precision_; }
    DType cache_dtype() const override { return precision_ == Precision::float32 ? DType::f32 : DType::f16; }
    bool memory_is_host() const override { return true; }
    ThreadPool& host_pool() override { return pool_; }

    Buffer allocate(size_t bytes) override;
    void copy_to_device(void* device, const void* host, size_t bytes) override;
    void copy_to_host(void* host, const void* device, size_t bytes) override;
    Weight upload(const Weight& weight, WeightUse use) override;
    Weight arranged(const Weight& weight) override;
    Weight download(const Weight& uploaded) override;
    Weight readable(const Weight& uploaded) override;
    Weight upload_table(const Weight& weight) override { return weight; }

    void linear(const Tensor& x, std::span<const LinearPart> parts) override;                 // linear.cpp
    void fused_linear(const LinearInput& input, std::span<const LinearPart> parts) override;  // linear.cpp
    LoraFactors upload_lora(const LoraMatrices& matrices) override;                           // adapters.cpp
    void adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters, std::span<const AdapterRows> adapter_rows,
               const float* bias, Tensor y) override;  // adapters.cpp
    void embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) override;
    void layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) override;
    void rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) override;
    void rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
              float magnitude, RopeStyle style) override;
    void store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) override;
    void attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                   const AttentionParams& params, Tensor out) override;
    void activate(Activation activation, Tensor x) override;
    void gated_activation(Activation activation, Tensor gate, const Tensor& up) override;
    void add(Tensor x, const Tensor& y) override;
    void scale_columns(Tensor x, const float* gain) override;
    void scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) override;
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) override;
    void pool(const Tensor& x, std::span<const Sequence> sequences, Pooling pooling, bool normalize, Tensor out) override;

private:
    /// f(first, last) over rows, in pieces of at least kMinimumWork elements; on this thread alone where there is less.
    void for_rows(int64_t rows, int64_t elements_per_row, FunctionRef<void(int64_t, int64_t)> f);
    /// One weight times x, output rows 16 * first .. 16 * last; used by linear() for every storage without panels.
    void float_part(const Tensor& x, const LinearPart& part, int64_t first, int64_t last) const;
    /// The products of float weights with `rows` rows of x, by FloatKind.
    const auto& float_work(int64_t rows) const { return rows <= kFewFloatRows ? kernels_.float_dots : kernels_.float_gemm; }
    void linear(const LinearInput& input, std::span<const LinearPart> parts, AdapterCall& adapters);
    /// Row r as it is multiplied, written to `transformed` unless it is null: then to x or to this thread's scratch.
    const float* transformed_row(const LinearInput& input, int64_t r, float* transformed) const;

    Precision precision_;
    const Isa& isa_;
    const Kernels& kernels_;
    ThreadPool pool_;
    WeightMemory weights_;
};

}  // namespace halfbyte::cpu
