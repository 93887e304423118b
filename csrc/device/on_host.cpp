#include "device/on_host.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace halfbyte {

namespace {

/// A host tensor's place on the device.
class Copy {
public:
    /// Both directions: an op may leave elements of its output alone.
    Copy(Device& device, const Tensor& host)
        : device_(device),
          host_(host),
          buffer_(device.allocate(size_t(std::max<int64_t>(host.rows * host.cols, 1)) * sizeof(float))) {
        for_rows([&](float* here, float* there, size_t bytes) { device_.copy_to_device(there, here, bytes); });
    }
    Tensor tensor() const { return {static_cast<float*>(buffer_.data), host_.rows, host_.cols}; }
    void back() const {
        for_rows([&](float* here, float* there, size_t bytes) { device_.copy_to_host(here, there, bytes); });
    }

private:
    template <class F>
    void for_rows(F f) const {
        if (host_.data == nullptr || host_.rows == 0 || host_.cols == 0) return;
        const Tensor there = tensor();
        const size_t row_bytes = size_t(host_.cols) * sizeof(float);
        if (host_.stride == host_.cols) return f(host_.data, there.data, row_bytes * size_t(host_.rows));
        for (int64_t r = 0; r < host_.rows; r++) f(host_.row(r), there.row(r), row_bytes);
    }
    Device& device_;
    Tensor host_;
    Buffer buffer_;
};

class OnHost final : public Device {
public:
    explicit OnHost(std::shared_ptr<Device> device) : inner_(std::move(device)) {}

    std::string description() const override { return inner_->description(); }
    Precision precision() const override { return inner_->precision(); }
    DType cache_dtype() const override { return inner_->cache_dtype(); }
    bool memory_is_host() const override { return true; }
    ThreadPool& host_pool() override { return inner_->host_pool(); }
    Buffer allocate(size_t bytes) override { return inner_->allocate(bytes); }
    void copy_to_device(void* device, const void* host, size_t bytes) override {
        inner_->copy_to_device(device, host, bytes);
    }
    void copy_to_host(void* host, const void* device, size_t bytes) override { inner_->copy_to_host(host, device, bytes); }
    Weight upload(const Weight& weight, WeightUse use) override { return inner_->upload(weight, use); }
    Weight arranged(const Weight& weight) override { return inner_->arranged(weight); }
    Weight download(const Weight& uploaded) override { return inner_->download(uploaded); }
    Weight readable(const Weight& uploaded) override { return inner_->readable(uploaded); }
    Weight upload_table(const Weight& weight) override { return inner_->upload_table(weight); }
    LoraFactors upload_lora(const LoraMatrices& matrices) override { return inner_->upload_lora(matrices); }

    void linear(const Tensor& x, std::span<const LinearPart> parts) override {
        LinearInput input;
        input.x = x;
        products(input, parts,
                 [&](const LinearInput& there, std::span<const LinearPart> those) { inner_->linear(there.x, those); });
    }
    void fused_linear(const LinearInput& input, std::span<const LinearPart> parts) override {
        products(input, parts,
                 [&](const LinearInput& there, std::span<const LinearPart> those) { inner_->fused_linear(there, those); });
    }
    void adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters, std::span<const AdapterRows> adapter_rows,
               const float* bias, Tensor y) override {
        const Copy in(*inner_, x), out(*inner_, y), offset(*inner_, vector(bias, y.cols));
        inner_->adapt(in.tensor(), adapters, adapter_rows, or_null(bias, offset), out.tensor());
        out.back();
    }
    void embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) override {
        change(out, [&](const Tensor& there) { inner_->embed(table, ids, there, accumulate); });
    }
    void layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) override {
        const Copy in(*inner_, x), scale(*inner_, vector(gamma, x.cols)), offset(*inner_, vector(beta, x.cols));
        change(out, [&](const Tensor& there) {
            inner_->layer_norm(in.tensor(), or_null(gamma, scale), or_null(beta, offset), eps, there);
        });
    }
    void rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) override {
        const Copy in(*inner_, x), scale(*inner_, vector(gamma, x.cols));
        change(out, [&](const Tensor& there) { inner_->rms_norm(in.tensor(), or_null(gamma, scale), eps, there); });
    }
    void rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
              float magnitude, RopeStyle style) override {
        change(x, [&](const Tensor& there) { inner_->rope(there, head_dim, positions, frequencies, magnitude, style); });
    }
    void store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) override {
        inner_->store_kv(Copy(*inner_, x).tensor(), sequences, store);
    }
    void attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                   const AttentionParams& params, Tensor out) override {
        int64_t keys = 0;
        for (const Sequence& s : sequences) keys = std::max(keys, s.first_key + s.keys);
        const Copy queries(*inner_, q), key_rows(*inner_, activations(k, params, keys)),
            value_rows(*inner_, activations(v, params, keys));
        AttentionParams there = params;
        const int64_t heads = params.bias_head_stride == 0 ? 1 : params.heads;
        const Copy bias(*inner_, vector(params.bias, params.bias == nullptr ? 0 : heads * q.rows * sequences[0].keys));
        there.bias = or_null(params.bias, bias);
        change(out, [&](const Tensor& result) {
            inner_->attention(queries.tensor(), view(k, key_rows), view(v, value_rows), sequences, there, result);
        });
    }
    void activate(Activation activation, Tensor x) override {
        change(x, [&](const Tensor& there) { inner_->activate(activation, there); });
    }
    void gated_activation(Activation activation, Tensor gate, const Tensor& up) override {
        const Copy factors(*inner_, up);
        change(gate, [&](const Tensor& there) { inner_->gated_activation(activation, there, factors.tensor()); });
    }
    void add(Tensor x, const Tensor& y) override {
        const Copy other(*inner_, y);
        change(x, [&](const Tensor& there) { inner_->add(there, other.tensor()); });
    }
    void scale_columns(Tensor x, const float* gain) override {
        const Copy factors(*inner_, vector(gain, x.cols));
        change(x, [&](const Tensor& there) { inner_->scale_columns(there, or_null(gain, factors)); });
    }
    void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) override {
        const Copy in(*inner_, x);
        change(out, [&](const Tensor& there) { inner_->gather_rows(in.tensor(), rows, there); });
    }
    void scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) override {
        const Copy in(*inner_, x);
        change(y, [&](const Tensor& there) { inner_->scatter_columns(in.tensor(), columns, there); });
    }
    void pool(const Tensor& x, std::span<const Sequence> sequences, Pooling pooling, bool normalize, Tensor out) override {
        const Copy in(*inner_, x);
        change(out, [&](const Tensor& there) { inner_->pool(in.tensor(), sequences, pooling, normalize, there); });
    }

private:
    static Tensor vector(const float* values, int64_t count) {
        return values == nullptr ? Tensor() : Tensor(const_cast<float*>(values), 1, count);
    }
    static const float* or_null(const float* host, const Copy& copy) {
        return host == nullptr ? nullptr : copy.tensor().data;
    }
    static Tensor activations(const KvView& view, const AttentionParams& params, int64_t keys) {
        if (view.rows > 0) return {};  // a cache is the device's own
        return {static_cast<float*>(view.data), keys, params.kv_heads * params.head_dim, view.stride};
    }
    static KvView view(KvView host, const Copy& copy) {
        if (host.rows == 0) host.data = copy.tensor().data, host.stride = copy.tensor().stride;
        return host;
    }
    template <class F>
    void change(const Tensor& out, F f) {
        const Copy copy(*inner_, out);
        f(copy.tensor());
        copy.back();
    }
    template <class F>
    void products(const LinearInput& input, std::span<const LinearPart> parts, F run) {
        const RowTransform& of = input.transform;
        const Copy x(*inner_, input.x), room(*inner_, input.transformed), up(*inner_, of.up),
            gamma(*inner_, vector(of.gamma, input.x.cols)), beta(*inner_, vector(of.beta, input.x.cols));
        const bool in_place = input.transformed.data == input.x.data;
        LinearInput there = input;
        there.x = x.tensor();
        there.transformed = in_place ? x.tensor() : room.tensor();
        there.transform.gamma = or_null(of.gamma, gamma), there.transform.beta = or_null(of.beta, beta);
        there.transform.up = up.tensor();
        std::vector<Copy> outputs, biases;
        std::vector<LinearPart> those(parts.begin(), parts.end());
        outputs.reserve(parts.size()), biases.reserve(parts.size());
        for (LinearPart& part : those) {
            const Copy& bias = biases.emplace_back(*inner_, vector(part.bias, part.y.cols));
            part.bias = or_null(part.bias, bias);
            part.y = outputs.emplace_back(*inner_, part.y).tensor();
        }
        run(there, those);
        for (const Copy& output : outputs) output.back();
        if (of.kind != RowTransform::Kind::none) (in_place ? x : room).back();
    }

    std::shared_ptr<Device> inner_;
};

}  // namespace

std::shared_ptr<Device> on_host(std::shared_ptr<Device> device) {
    if (device->memory_is_host()) return device;
    return std::make_shared<OnHost>(std::move(device));
}

}  // namespace halfbyte
