// Runs every op of the CPU device at odd sizes. Inputs are exactly as long as they must be (the address sanitizer sees a read
// behind them); outputs lie between guards, in rows with a gap, and whatever is not theirs must be untouched. Values are checked
// by values.cpp and by the Python tests beside this file.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/device.h"
#include "device/isa.h"
#include "storage/encode.h"
#include "storage/storage.h"

using namespace halfbyte;

namespace {

std::mt19937 generator(1);
int failures = 0;

/// Exactly n floats.
std::unique_ptr<float[]> random_floats(int64_t n) {
    std::normal_distribution<float> normal;
    auto values = std::make_unique<float[]>(size_t(n));
    for (int64_t i = 0; i < n; i++) values[size_t(i)] = normal(generator);
    return values;
}

/// A [rows, cols] tensor with a gap behind every row and guards on both sides.
class Guarded {
public:
    Guarded(int64_t rows, int64_t cols)
        : rows_(rows), cols_(cols), stride_(cols + 5), memory_(size_t(rows * stride_ + 2 * kGuard), kMark) {}
    Tensor tensor() { return {memory_.data() + kGuard, rows_, cols_, stride_}; }
    /// Says `what` and counts a failure if anything around the tensor changed.
    void check(const char* what) const {
        for (int64_t i = 0; i < int64_t(memory_.size()); i++) {
            const int64_t at = i - kGuard, row = at / stride_;
            const bool inside = at >= 0 && row < rows_ && at % stride_ < cols_;
            if (inside || memory_[size_t(i)] == kMark) continue;
            std::printf("%s [%lld, %lld]: wrote at row %lld, column %lld\n", what, (long long)rows_, (long long)cols_,
                        (long long)row, (long long)(at % stride_));
            failures++;
            return;
        }
    }

private:
    static constexpr int64_t kGuard = 64;
    static constexpr float kMark = -12345.5f;
    int64_t rows_, cols_, stride_;
    std::vector<float> memory_;
};

void linear_and_embed(Device& device, int64_t m, int64_t k, int64_t n) {
    const auto x = random_floats(m * k), source = random_floats(n * k), bias = random_floats(n);
    for (const char* format : {"nf4", "fp4", "int8", "f32", "f16", "bf16"}) {
        EncodeOptions options;
        options.format = format;
        options.block_size = k % 64 == 0 ? 64 : 32;
        if (options.format == "int8" && k % 32 != 0) continue;
        const Weight weight = encode(source.get(), n, k, options, device.host_pool());
        const Weight uploaded = device.upload(weight);
        for (const bool accumulate : {false, true}) {
            Guarded y(m, n), rows(m, k);
            const LinearPart part{&uploaded, bias.get(), y.tensor(), accumulate};
            device.linear(Tensor(x.get(), m, k), {&part, 1});
            y.check(format);
            const std::vector<int32_t> ids(size_t(m), int32_t(n - 1));
            device.embed(device.upload_table(weight), ids, rows.tensor(), accumulate);
            rows.check("embed");
        }
        // The layout of the device is a storage like any other. Values are at most about 5, their integers within 3e-4 of that.
        std::vector<float> there(static_cast<size_t>(k)), here(static_cast<size_t>(k));
        for (int64_t row = 0; row < n; row++) {
            uploaded.storage->decode_row(uploaded, row, there.data());
            weight.storage->decode_row(weight, row, here.data());
            for (size_t i = 0; i < here.size(); i++) {
                if (std::abs(there[i] - here[i]) <= 3e-3f) continue;
                std::printf("%s: row %lld, column %zu is %g, uploaded %g\n", format, (long long)row, i, double(here[i]),
                            double(there[i]));
                failures++;
                return;
            }
        }
    }
}

void rowwise(Device& device, int64_t m, int64_t k) {
    const auto x = random_floats(m * k), gamma = random_floats(k), beta = random_floats(k);
    const Tensor in(x.get(), m, k);
    Guarded out(m, k);
    device.layer_norm(in, gamma.get(), beta.get(), 1e-5f, out.tensor());
    out.check("layer_norm");
    device.rms_norm(in, gamma.get(), 1e-5f, out.tensor());
    out.check("rms_norm");
    for (int activation = 0; activation < 6; activation++) {
        device.activate(Activation(activation), out.tensor());
        device.gated_activation(Activation(activation), out.tensor(), in);
        out.check("activate");
    }
    device.add(out.tensor(), in);
    out.check("add");
    const std::vector<int32_t> rows(size_t(m), int32_t(m - 1));
    device.gather_rows(in, rows, out.tensor());
    out.check("gather_rows");
    const std::vector<Sequence> sequences{{0, m / 2, 0, m / 2}, {m / 2, m - m / 2, 0, m - m / 2}};
    for (const Pooling pooling : {Pooling::mean, Pooling::cls, Pooling::max, Pooling::last}) {
        Guarded pooled(2, k);
        device.pool(in, sequences, pooling, true, pooled.tensor());
        pooled.check("pool");
    }
    for (const RopeStyle style : {RopeStyle::half, RopeStyle::interleaved}) {
        Guarded heads(m, 3 * k);
        const std::vector<int32_t> positions(size_t(m), 5);
        const std::vector<float> frequencies(size_t(k / 2), 0.1f);
        device.rope(heads.tensor(), k, positions, frequencies, 1.0f, style);
        heads.check("rope");
    }
}

/// Rows of a call dealt out to adapters at random; some to none.
struct RowLists {
    std::vector<std::vector<int32_t>> lists;
    std::vector<AdapterRows> adapter_rows;

    RowLists(int64_t rows, uint32_t adapters) : lists(adapters) {
        for (int64_t r = 0; r < rows; r++)
            if (const uint32_t to = uint32_t(generator() % (adapters + 1)); to < adapters) lists[to].push_back(int32_t(r));
        for (const std::vector<int32_t>& list : lists) adapter_rows.push_back({list.data(), int64_t(list.size()), 1.0f});
    }
};

void adapters(Device& device, int64_t m, int64_t k, int64_t n) {
    const auto x = random_floats(m * k), a = random_floats(5 * k), b = random_floats(n * 5);
    const auto half_a = std::make_unique<uint16_t[]>(size_t(2 * k)), half_b = std::make_unique<uint16_t[]>(size_t(2 * n));
    LinearAdapter wide, half;
    wide.lora = device.upload_lora({a.get(), b.get(), DType::f32, DType::f32, 5, k, n, 1.0f});
    half.lora = device.upload_lora({half_a.get(), half_b.get(), DType::f16, DType::bf16, 2, k, n, 0.5f});
    wide.gain = device.allocate(size_t(n) * sizeof(float)), wide.shift = device.allocate(size_t(n) * sizeof(float));
    device.copy_to_device(wide.gain.data, b.get(), size_t(n) * sizeof(float));
    device.copy_to_device(wide.shift.data, b.get(), size_t(n) * sizeof(float));
    const LinearAdapter* const pair[] = {&wide, &half};
    const RowLists rows(m, 2);
    Guarded y(m, n);
    device.adapt(Tensor(x.get(), m, k), pair, rows.adapter_rows, nullptr, y.tensor());
    const AdapterRows all[] = {{}, {}};
    wide.gain_of_bias = false;
    device.adapt(Tensor(x.get(), m, k), pair, all, b.get(), y.tensor());
    y.check("adapt");
    device.scale_columns(y.tensor(), b.get());
    y.check("scale_columns");
    Guarded narrow(m, 1);
    const std::vector<int32_t> column = {int32_t(n - 1)};
    for (int64_t r = 0; r < m; r++) *narrow.tensor().row(r) = 7;
    device.scatter_columns(narrow.tensor(), column, y.tensor());
    y.check("scatter_columns");
    for (int64_t r = 0; r < m; r++)
        if (y.tensor().row(r)[n - 1] != 7) std::printf("scatter_columns: row %lld\n", (long long)r), failures++;
}

void fused(Device& device, int64_t m, int64_t k, int64_t n) {
    const auto x = random_floats(m * k), source = random_floats(n * k), gamma = random_floats(k), up = random_floats(m * k),
               a = random_floats(5 * k), b = random_floats(n * 5);
    EncodeOptions options;
    options.format = k % 32 == 0 ? "nf4" : "f32";
    options.block_size = k % 64 == 0 ? 64 : 32;
    const Weight weight = device.upload(encode(source.get(), n, k, options, device.host_pool()));
    LinearAdapter factors;
    factors.lora = device.upload_lora({a.get(), b.get(), DType::f32, DType::f32, 5, k, n, 1.0f});
    const LinearAdapter* const adapters[] = {nullptr, &factors};
    const RowLists rows(m, 2);
    using Kind = RowTransform::Kind;
    for (const Kind kind : {Kind::none, Kind::rms_norm, Kind::layer_norm, Kind::activation, Kind::gated_activation})
        for (const bool in_place : {false, true})
            for (const bool adapted : {false, true}) {
                Guarded in(m, k), transformed(m, k), y(m, n);
                for (int64_t r = 0; r < m; r++) std::copy_n(x.get() + r * k, k, in.tensor().row(r));
                LinearInput input;
                input.x = in.tensor(), input.transformed = in_place ? in.tensor() : transformed.tensor();
                input.keep = adapted;
                if (adapted) input.adapter_rows = rows.adapter_rows;
                input.transform = {kind, gamma.get(), nullptr, 1e-5f, Activation::silu, Tensor(up.get(), m, k)};
                LinearPart part;
                part.weight = &weight, part.y = y.tensor();
                if (adapted) part.adapters = adapters;
                device.fused_linear(input, {&part, 1});
                in.check("fused_linear x");
                transformed.check("fused_linear transformed");
                y.check("fused_linear");
                if (in_place) continue;
                for (int64_t r = 0; r < m; r++)
                    if (!std::equal(x.get() + r * k, x.get() + (r + 1) * k, in.tensor().row(r))) {
                        std::printf("fused_linear: wrote to row %lld of its input\n", (long long)r);
                        failures++;
                        break;
                    }
            }
}

void attention(Device& device, int64_t m, int64_t dim) {
    const int64_t keys = m + 3, before = 70, width = 2 * dim;
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::i8})
        for (const int64_t heads : {2, 6, 14}) {
            const auto q = random_floats(m * heads * dim), kv = random_floats(keys * width),
                       bias = random_floats(heads * m * keys);
            // The second of two sequences of a cache: the first must stay as it is.
            KvView views[2];
            std::vector<char> memory[2];
            std::vector<float> scales[2];
            const int64_t rows = 128 + (keys + kKvBlock - 1) / kKvBlock * kKvBlock;
            for (int i = 0; i < 2; i++) {
                KvView& view = views[i];
                memory[i].assign(size_t(2 * rows * kv_width(dim)) * size_of(dtype), 0);
                scales[i].assign(size_t(2 * rows), 0.0f);
                view.data = memory[i].data(), view.dtype = dtype, view.role = i == 0 ? KvRole::keys : KvRole::values;
                view.heads = 2, view.head_dim = dim, view.rows = rows;
                if (dtype == DType::i8) view.scales = scales[i].data();
                const Sequence first{0, std::min(before, keys), 0, std::min(before, keys)};
                device.store_kv(Tensor(kv.get(), keys, width), {&first, 1}, view);
                const std::vector<char> untouched = memory[i];
                const Sequence parts[] = {{0, 3, 128, 3}, {3, m, 128, keys}};
                for (const Sequence& part : parts) device.store_kv(Tensor(kv.get(), keys, width), {&part, 1}, view);
                const size_t head = memory[i].size() / 2, other = size_t(128 * kv_width(dim)) * size_of(dtype);
                for (size_t at = 0; at < memory[i].size(); at += head)
                    if (std::memcmp(memory[i].data() + at, untouched.data() + at, other) != 0) {
                        std::printf("store_kv: wrote into another sequence, %zu bytes an element\n", size_of(dtype));
                        failures++;
                    }
            }
            KvView plain[2];
            for (KvView& view : plain) view.data = kv.get(), view.stride = width;
            plain[1].role = KvRole::values;
            for (int variant = 0; variant < 4; variant++) {
                AttentionParams params;
                params.heads = heads, params.kv_heads = 2, params.head_dim = dim, params.scale = 0.1f, params.causal = true;
                params.window = variant == 1 ? 2 : 0;
                params.bias = variant == 2 ? bias.get() : nullptr;
                params.bias_head_stride = m * keys;
                params.softcap = variant == 3 ? 2.0f : 0.0f;
                Guarded out(m, heads * dim);
                Sequence sequence{0, m, 128, keys};
                device.attention(Tensor(q.get(), m, heads * dim), views[0], views[1], {&sequence, 1}, params, out.tensor());
                out.check("attention to a cache");
                sequence.first_key = 0;
                device.attention(Tensor(q.get(), m, heads * dim), plain[0], plain[1], {&sequence, 1}, params, out.tensor());
                out.check("attention");
            }
        }
}

}  // namespace

int main() {
    std::vector<std::string> names = instruction_sets();
    const std::vector<std::string> for_tests{"avx512_emulated", "avx_vnni_evex"};  // of a build with HALFBYTE_EMULATED_ISA
    names.insert(names.end(), for_tests.begin(), for_tests.end());
    for (const std::string& name : names)
        for (const Precision precision : {Precision::high, Precision::float32}) {
            setenv("HALFBYTE_ISA", name.c_str(), 1);
            std::shared_ptr<Device> device;
            try {
                device = make_device("cpu", {precision == Precision::high ? 3 : 1, precision});
            } catch (const Error&) {
                if (std::ranges::find(for_tests, name) == for_tests.end()) throw;
                continue;
            }
            std::printf("%s\n", device->description().c_str());
            for (const int64_t m : {1, 2, 7, 13, 100}) {
                for (const int64_t k : {1, 17, 32, 96, 192, 576}) {
                    for (const int64_t n : {1, 15, 33}) linear_and_embed(*device, m, k, n);
                    rowwise(*device, m, k);
                    adapters(*device, m, k, 33);
                    fused(*device, m, k, 33);
                }
                for (const int64_t dim : {2, 20, 64, 80}) attention(*device, m, dim);
            }
        }
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
