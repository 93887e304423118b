// NVIDIA GPUs as a Device: every op becomes commands (commands.h) in the queue of one stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/core.h"
#include "cuda/weights.h"
#include "device/device.h"

namespace halfbyte::cuda {

/// Throws Error internal "cuda <op>: <parts>" where a shape contradicts the contract of device.h.
template <class... Parts>
void expect(bool condition, const Parts&... parts) {
    if (!condition) fail(ErrorCode::internal, "cuda ", parts...);
}

/// high and fast: weights are rounded once to bf16 where more than kGemvExactRows rows are multiplied, as in training; rows to
/// bf16 where more than kGemvRows are, to twice a bf16 below; all sums, norms and activations are float32. float32: nothing is
/// rounded.
class CudaDevice final : public Device {
public:
    CudaDevice(int index, const DeviceOptions& options);

    std::string description() const override;
    Precision precision() const override { return precision_; }
    DType cache_dtype() const override { return precision_ == Precision::float32 ? DType::f32 : DType::f16; }
    bool memory_is_host() const override { return false; }
    uint64_t replays() override;
    ThreadPool& host_pool() override { return pool_; }

    Buffer allocate(size_t bytes) override { return core_->buffer(bytes, "activations or a cache"); }
    void copy_to_device(void* device, const void* host, size_t bytes) override {
        core_->copy_to_device(device, host, bytes);
    }
    void copy_to_host(void* host, const void* device, size_t bytes) override { core_->copy_to_host(host, device, bytes); }
    Weight upload(const Weight& weight, WeightUse use) override;
    Weight download(const Weight& uploaded) override;
    Weight readable(const Weight& uploaded) override { return download(uploaded); }
    Weight upload_table(const Weight& weight) override { return upload(weight, WeightUse::few_rows); }

    void linear(const Tensor& x, std::span<const halfbyte::LinearPart> parts) override;                 // linear.cpp
    void fused_linear(const LinearInput& input, std::span<const halfbyte::LinearPart> parts) override;  // linear.cpp
    LoraFactors upload_lora(const LoraMatrices& matrices) override;                                     // adapters.cpp
    void adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters, std::span<const AdapterRows> adapter_rows,
               const float* bias, Tensor y) override;  // adapters.cpp
    void embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) override;
    void layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) override;
    void rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) override;
    void rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
              float magnitude, RopeStyle style) override;
    void store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) override;  // attention.cpp
    void attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                   const AttentionParams& params, Tensor out) override;  // attention.cpp
    void activate(halfbyte::Activation activation, Tensor x) override;
    void gated_activation(halfbyte::Activation activation, Tensor gate, const Tensor& up) override;
    void add(Tensor x, const Tensor& y) override;
    void scale_columns(Tensor x, const float* gain) override;
    void scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) override;
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) override;
    void pool(const Tensor& x, std::span<const Sequence> sequences, halfbyte::Pooling pooling, bool normalize,
              Tensor out) override;

    bool can_sample() const override { return true; }
    void sample(const Tensor& logits, std::span<const Draw> draws, std::span<int32_t> tokens) override;

private:
    TransformRows rows_of(const Tensor& x) const;
    void transform(const TransformRows& command);
    /// The weight with its codes on the device: brought there first where they stay in host memory. With the lock held.
    TiledWeight here(const DeviceWeight& weight);
    void products(const Tensor& x, std::span<const halfbyte::LinearPart> parts);
    void tensor_products(const void* x_bf16, int64_t rows, std::span<const halfbyte::LinearPart> parts);

    Precision precision_;
    ThreadPool pool_;
    std::shared_ptr<Core> core_;
    WeightUploader weights_;
};

}  // namespace halfbyte::cuda
