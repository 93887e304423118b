// The op vocabulary: everything a forward pass asks of a machine. No implementation here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "core/weight.h"

namespace halfbyte {

enum class Precision {
    high,     ///< Default. At least as accurate as 16-bit floating point everywhere.
    fast,     ///< Linear layers may round activations to int8 where that is quicker; a device may run `high` instead.
    float32,  ///< The reference: float32 activations on decoded rows, float32 cache.
};

struct DeviceOptions {
    int threads = 0;  ///< 0: one per available core
    Precision precision = Precision::high;
    /// Of a GPU: bytes that weights may take there; what is beyond stays in host memory. 0: what is free, less a reserve.
    size_t memory_limit = 0;
};

/// A device that make_device() can make here, or why it can't.
struct DeviceSummary {
    std::string name;         ///< "cpu", "cuda", "cuda:1"
    std::string description;  ///< "NVIDIA H100 PCIe (sm_90)"; of "cuda" without one: why there is none
    bool available = true;
    uint64_t total_bytes = 0, free_bytes = 0;  ///< of its own memory; 0 for the host
};

/// Device memory; freed by the last owner.
struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    std::shared_ptr<void> owner;
};

/// How many rows of activations a weight is multiplied with, for the most part.
enum class WeightUse {
    any_rows,
    few_rows,  ///< an output layer: one row per sequence. Float weights stay as they are, where they are.
};

enum class Activation { none, relu, gelu, gelu_tanh, silu, tanh };

/// The matrices of one LoRA adapter for one linear layer in host memory, as they were saved: f32, f16 or bf16.
struct LoraMatrices {
    const void* a = nullptr;  ///< [rank, in]
    const void* b = nullptr;  ///< [out, rank]
    DType a_dtype = DType::f32, b_dtype = DType::f32;
    int64_t rank = 0, in = 0, out = 0;
    float scale = 1;  ///< lora_alpha / r, or lora_alpha / sqrt(r)
};

/// The same in the layout of the device that made it, Device::upload_lora(): same values, same dtypes.
struct LoraFactors {
    Buffer a, b;
    DType a_dtype = DType::f32, b_dtype = DType::f32;
    int64_t rank = 0, in = 0, out = 0;
    float scale = 1;
};

/// What one adapter makes of one linear layer, for the rows that name it:
///     y = pivot + gain * (W x + bias + scale * B (A x) - pivot) + shift
/// LoRA is B (A x) alone. DoRA (arXiv:2402.09353) also turns the length of every row of the merged matrix: gain, and pivot the
/// bias, which it leaves alone. (IA)^3 (arXiv:2205.05638) is a gain, pivot 0. Biases that were trained are a shift.
struct LinearAdapter {
    LoraFactors lora;          ///< rank 0: none
    Buffer gain, shift;        ///< f32 [out] or empty: 1 and 0
    bool gain_of_bias = true;  ///< pivot is 0; false: pivot is the bias
};

/// The rows of a call that an adapter is for. Host.
struct AdapterRows {
    static constexpr int64_t kAll = -1;
    const int32_t* rows = nullptr;  ///< [count], ascending
    int64_t count = kAll;           ///< kAll: all rows of the call, and `rows` is not read
    float weight = 1;               ///< of B (A x) and shift; a gain takes only 1
};

/// One product of a linear call: y = x W^T + bias (or y += ...), and the adapters of that layer.
struct LinearPart {
    const Weight* weight = nullptr;  ///< [n, k], made by upload()
    const float* bias = nullptr;     ///< [n] on the device, or null
    Tensor y;                        ///< [rows of x, n]
    bool accumulate = false;         ///< y += W x + bias: the residual add
    /// Host: one pointer for each of LinearInput::adapter_rows, null where that adapter leaves this layer alone. Read by
    /// fused_linear() only. One with a gain does not go with `accumulate`.
    std::span<const LinearAdapter* const> adapters = {};
};

/// What becomes of every row on its way into a linear layer.
struct RowTransform {
    enum class Kind { none, rms_norm, layer_norm, activation, gated_activation };
    Kind kind = Kind::none;
    const float* gamma = nullptr;  ///< norms: [k] on the device
    const float* beta = nullptr;   ///< layer_norm: [k], or null
    float eps = 0;
    Activation activation = Activation::none;
    Tensor up = {};  ///< gated_activation: [rows, k]; rows become activation(x) * up
};

struct LinearInput {
    Tensor x;                ///< [rows, k]
    RowTransform transform;  ///< of x into what is multiplied
    /// [rows, k], may be x itself: room for the transformed rows. What it holds afterwards is undefined unless `keep`. Unused
    /// without a transform.
    Tensor transformed;
    bool keep = false;  ///< the caller wants the transformed rows
    /// Host. A row may be in several of them; what they do is done in this order.
    std::span<const AdapterRows> adapter_rows = {};
};

/// Consecutive tokens of one sequence in a packed batch, and where their keys are.
struct Sequence {
    int64_t first_row = 0;  ///< first row of this sequence in the batch
    int64_t rows = 0;       ///< new tokens
    int64_t first_key = 0;  ///< row of the keys and values that holds this sequence's first; a cache: a multiple of kKvBlock
    int64_t keys = 0;  ///< keys to attend to, those of the new tokens included; query i sits at position keys - rows + i
};

/// A cache is filled and lies in memory in blocks of so many rows: a sequence starts at a multiple of it.
constexpr int64_t kKvBlock = 64;
/// Elements that a cache holds for one row of one head.
constexpr int64_t kv_width(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

enum class KvRole { keys, values };

/// Keys or values of one layer, in one of two layouts:
/// - a cache (rows > 0), written by store_kv(): [heads][rows][kv_width(head_dim)] elements of `dtype` (f32, f16, bf16 or i8),
///   rows a multiple of kKvBlock. In which order the elements of a block of kKvBlock rows of a head lie is the device's own
///   affair, and keys and values differ; the blocks themselves may be copied. i8: value = element * scale of its head and row.
/// - activations (rows == 0), read alone: float32 [n, heads * head_dim], rows `stride` elements apart.
struct KvView {
    void* data = nullptr;
    DType dtype = DType::f32;
    KvRole role = KvRole::keys;
    int64_t stride = 0;  ///< of activations
    int64_t heads = 0, head_dim = 0, rows = 0;
    float* scales = nullptr;  ///< [heads][rows] of a cache in i8
};

struct AttentionParams {
    int64_t heads = 0, kv_heads = 0, head_dim = 0;
    float scale = 0;  ///< usually 1 / sqrt(head_dim)
    bool causal = false;
    int64_t window = 0;            ///< > 0: query at p sees keys p - window + 1 .. p
    float softcap = 0;             ///< > 0: scores become softcap * tanh(score / softcap)
    const float* bias = nullptr;   ///< added to the scores: [heads or 1, rows, keys] on the device, one sequence only
    int64_t bias_head_stride = 0;  ///< 0: one bias for all heads
};

enum class RopeStyle { half, interleaved };  ///< pairs (i, i + d/2) as in Hugging Face, or (2i, 2i + 1)

enum class Pooling { mean, cls, max, last };

/// How one token is drawn from its logits; the filters and their order are those of runtime/sampler.h.
struct Draw {
    float temperature = 0;  ///< 0: the greatest logit, the lowest id of equal ones
    int32_t top_k = 0;      ///< 0: off
    float top_p = 1, min_p = 0;
    double uniform = 0;  ///< [0, 1): the random number
};

/// A machine that can run a forward pass. Safe to call from many threads. Row counts may be zero.
/// Every Tensor and pointer is in this device's memory unless marked host. Errors: out_of_memory, internal.
class Device {
public:
    virtual ~Device() = default;
    virtual std::string description() const = 0;  ///< "cpu avx2, 2 threads, high"
    virtual Precision precision() const = 0;
    virtual DType cache_dtype() const = 0;  ///< what a KV cache should hold where nobody asks for something else
    /// True where Tensors and buffers lie in memory that the host reads and writes as its own.
    virtual bool memory_is_host() const = 0;
    /// Lists of work that were sent as one recorded graph so far; 0 where a device has no such thing.
    virtual uint64_t replays() { return 0; }
    /// Threads for host-side work (loading, encoding).
    virtual ThreadPool& host_pool() = 0;

    virtual Buffer allocate(size_t bytes) = 0;  ///< 64-byte aligned, not zeroed
    virtual void copy_to_device(void* device, const void* host, size_t bytes) = 0;
    virtual void copy_to_host(void* host, const void* device, size_t bytes) = 0;
    /// The weight in the layout this device runs best, for linear(). May share the planes it is given.
    virtual Weight upload(const Weight& weight, WeightUse use = WeightUse::any_rows) = 0;
    /// The weight in a storage that a file can hold and that upload() of this device takes up without copying most of it; the
    /// weight as it is where the device has no better order for it.
    virtual Weight arranged(const Weight& weight) { return weight; }
    /// What upload() was given, bit for bit. Errors: unsupported where the layout cannot be undone.
    virtual Weight download(const Weight& uploaded) = 0;
    /// The weight in a storage whose rows the host can decode: what upload() was given, or, where the layout cannot be undone,
    /// the values that linear() multiplies with.
    virtual Weight readable(const Weight& uploaded) = 0;
    /// The weight for embed(): rows are looked up, not multiplied; often the same planes. A weight used by both
    /// linear() and embed() (tied embeddings) is uploaded once through each.
    virtual Weight upload_table(const Weight& weight) = 0;

    virtual LoraFactors upload_lora(const LoraMatrices& matrices) = 0;

    /// All parts read the same x [rows, k]: activations are converted once.
    virtual void linear(const Tensor& x, std::span<const LinearPart> parts) = 0;
    /// What adapters make of y = x W^T + bias, see LinearAdapter: adapters[i] for the rows of adapter_rows[i], a null one
    /// leaves them alone. `bias` as it was in that product.
    virtual void adapt(const Tensor& x, std::span<const LinearAdapter* const> adapters,
                       std::span<const AdapterRows> adapter_rows, const float* bias, Tensor y) = 0;
    /// A norm or an activation, the products of its result and their adapters in one call. The default (fused_linear.cpp) is
    /// made of the small ops; a device that can do better does.
    virtual void fused_linear(const LinearInput& input, std::span<const LinearPart> parts);
    /// The rows that input.transform makes of input.x, in the words of the small ops: input.transformed, or x without a
    /// transform.
    Tensor transform_rows(const LinearInput& input);
    /// out[i] = table[ids[i]] (+= if accumulate). ids: host [out.rows], in range.
    virtual void embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) = 0;

    virtual void layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) = 0;
    virtual void rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) = 0;
    /// In place on every head of x [rows, heads * head_dim]; the first 2 * frequencies.size() dims of a head turn by
    /// position * frequency (host, radians per position); magnitude multiplies cos and sin (YaRN). positions: host [rows].
    virtual void rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
                      float magnitude, RopeStyle style) = 0;
    /// Writes the new keys or values of each sequence into a cache, behind those it has (rows first_key + keys - rows ...).
    /// i8 rounds to 127 levels either side of zero, with one scale for each head and row.
    virtual void store_kv(const Tensor& x, std::span<const Sequence> sequences, const KvView& store) = 0;
    /// out [rows, heads * head_dim] = softmax(q k^T * scale ...) v, per sequence.
    virtual void attention(const Tensor& q, const KvView& k, const KvView& v, std::span<const Sequence> sequences,
                           const AttentionParams& params, Tensor out) = 0;
    virtual void activate(Activation activation, Tensor x) = 0;
    /// gate = activation(gate) * up
    virtual void gated_activation(Activation activation, Tensor gate, const Tensor& up) = 0;
    virtual void add(Tensor x, const Tensor& y) = 0;              ///< x += y
    virtual void scale_columns(Tensor x, const float* gain) = 0;  ///< x[:, c] *= gain[c]
    /// out[i] = x[rows[i]]; rows: host.
    virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) = 0;
    /// y[:, columns[j]] = x[:, j]; columns: host, in range.
    virtual void scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) = 0;
    /// One row per sequence (keys and first_key unused); normalize: to unit L2 norm (as torch: / max(norm, 1e-12)).
    virtual void pool(const Tensor& x, std::span<const Sequence> sequences, Pooling pooling, bool normalize, Tensor out) = 0;
    /// True where sample() is more than an error: logits need not come to the host.
    virtual bool can_sample() const { return false; }
    /// tokens[i] (host) = the token drawn from row i of logits by draws[i] (host); -1 where a logit is NaN or +infinity, or all
    /// are -infinity.
    virtual void sample(const Tensor& logits, std::span<const Draw> draws, std::span<int32_t> tokens);
};

/// Bytes that a weight takes on a device of that name ("cpu", "cuda", ...), whether this machine has one or not; for the CPU, what
/// the weight has.
size_t uploaded_bytes(std::string_view device, const Weight& weight);

/// The host first, then every GPU; one "cuda" that is not available where there is none.
std::vector<DeviceSummary> list_devices();

/// name: "cpu", "cuda", "cuda:1" (by CUDA's count) or "auto": what the environment
/// variable HALFBYTE_DEVICE names, else "cuda" where there is one, else "cpu". Errors: not_found with one clear sentence where this build or machine has no such device;
/// invalid_argument for any other name.
std::shared_ptr<Device> make_device(std::string_view name, const DeviceOptions& options);

}  // namespace halfbyte
