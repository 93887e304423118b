// The words in which the core speaks to the CUDA plugin: one struct for each kernel launch. Plain data, compiled by the host
// compiler on one side and by nvcc (or, for tests, against the emulator) on the other. No implementation here.
//
// All pointers are device memory. Activations are float32, rows `stride` elements apart. Every command is one or a few kernels of
// one stream, in order; a command never waits for the host, so that a list of them can be captured as a graph.
#pragma once

#include <cstddef>
#include <cstdint>

namespace halfbyte::cuda {

/// Changes whenever a struct below or the table in plugin.h does.
constexpr uint32_t kAbi = 1;

enum class Element : uint32_t { f32, f16, bf16, i8 };

// --- weights ------------------------------------------------------------------------------------------------------

enum class Format : uint32_t { codebook4, int8, f16, bf16, f32 };

constexpr int kTileRows = 16;  ///< output features of a tile
constexpr int kTileCols = 64;  ///< input features of a tile

/// A weight [rows, cols] in tiles of 16 rows x 64 columns, so that what one lane of a warp needs for a fragment of
/// mma.m16n8k16 (the weight as A, or each half of its rows as B) is one load: lane l = 4 g + q holds, of every 16 columns from
/// column 16 s of a tile on, the eight elements
///     e = 4 h + i:  row g + 8 h,  column 16 s + (0, 1, 8, 9)[i] + 2 q        (h = 0, 1; i = 0..3)
/// The codes, [row tiles][column tiles] of
///     codebook4: [32 lanes][4 steps s] u32, element e in bits 4 e .. 4 e + 3           (512 bytes: one uint4 a lane)
///     int8:      [2 halves][32 lanes][2 steps] 8 x i8; step s = 2 half + step          (1,024 bytes: two uint4 a lane)
///     f16, bf16: [4 steps s][32 lanes] 8 elements                                      (2,048 bytes: four uint4 a lane)
///     f32:       [4 steps s][2 halves h][32 lanes] 4 elements                          (4,096 bytes: eight uint4 a lane)
/// Rows are filled up to 16 and columns to 64 with zero codes; what a padded column is multiplied with must be 0.
/// value = level * scale + offset, one float32 product and one float32 sum, each rounded (no sum where offsets is null); level is
/// levels[code] or the signed byte; float formats have neither scale nor offset.
struct TiledWeight {
    Format format;
    int32_t rows, cols;
    int32_t row_tiles, col_tiles;  ///< ceil(rows / 16), ceil(cols / 64)
    int32_t blocks;                ///< scales of a row; padded columns may lie beyond them and then count as scale 0
    int32_t block_shift;           ///< column c has scale c >> block_shift; at least 4; 31: one scale a row
    const void* codes;
    const void* scales;          ///< [row tiles][blocks][16 rows] f32, or u8 where nested_levels is given; null for floats
    const float* offsets;        ///< [row tiles][blocks][16 rows] or null
    const float* levels;         ///< codebook4: [16]
    const float* nested_levels;  ///< [256] or null. bitsandbytes' double quantisation: with i = row * blocks + block,
    const float* nested_scales;  ///<   scale = nested_levels[u8] * nested_scales[i >> nested_shift] + nested_offset,
    int32_t nested_count;  ///<   a product and a sum, each rounded; [nested_count], i of padded rows is clamped to its end
    int32_t nested_shift;
    float nested_offset;
};

constexpr int kMaxParts = 4;

/// y = x W^T + bias, or y += ... .
struct LinearPart {
    TiledWeight weight;
    const float* bias;  ///< [rows of the weight] or null
    float* y;           ///< [rows, rows of the weight]
    int64_t y_stride;
    int32_t accumulate;
};

/// Up to kMaxParts products that read the same rows. x is float32 and used as it is; float32 sums.
/// Weights are rounded nowhere where rows <= kGemvExactRows, else once, to bf16, as in training.
struct Gemv {
    const float* x;  ///< [rows, cols]
    int64_t x_stride;
    int32_t rows;  ///< 1 .. kGemvRows
    int32_t parts;
    float* partials;             ///< room for split sums, kPartialFloats
    uint32_t* counters;          ///< [kCounters], zero before and after
    LinearPart part[kMaxParts];  ///< last: a list of commands holds those that there are
};
constexpr int kGemvRows = 16;
constexpr int kGemvExactRows = 2;
constexpr int64_t kPartialFloats = int64_t(1) << 22;
constexpr int kCounters = 4096;

/// The same on tensor cores: x is bf16 [rows, padded_cols], 16-byte aligned, zero from cols on; padded_cols is 64 * col_tiles.
struct Gemm {
    const void* x;
    int32_t rows;
    int32_t parts;
    float* partials;             ///< as in Gemv
    uint32_t* counters;          ///< as in Gemv
    LinearPart part[kMaxParts];  ///< as in Gemv
};

/// The same in float32 throughout (Precision::float32): any rows.
struct LinearF32 {
    const float* x;
    int64_t x_stride;
    int32_t rows;
    LinearPart part;
};

/// out[i] = row ids[i] of the table (+= if accumulate).
struct Embed {
    TiledWeight table;
    const int32_t* ids;  ///< [rows]
    float* out;
    int64_t out_stride;
    int32_t rows, accumulate;
};

// --- rows ---------------------------------------------------------------------------------------------------------

enum class Transform : uint32_t { none, rms_norm, layer_norm, activation, gated_activation };
enum class Activation : uint32_t { none, relu, gelu, gelu_tanh, silu, tanh };  ///< as in device.h

/// Rows of x on their way into a product: to float32 (out, may be x itself), to bf16 filled up with zeros to padded_cols
/// (out_bf16), or both; null where not wanted. The numbers are float32 until then.
struct TransformRows {
    Transform kind;
    Activation activation;
    const float* x;
    int64_t x_stride;
    const float* up;  ///< gated_activation: out = activation(x) * up
    int64_t up_stride;
    const float *gamma, *beta;  ///< norms: [cols]; beta may be null
    float eps;
    int32_t rows, cols;
    float* out;
    int64_t out_stride;
    void* out_bf16;  ///< [rows, padded_cols]
    int32_t padded_cols;
};

/// x [rows, heads * head_dim]: dims of each head turn by positions[row] * frequencies[i]: the product is float32, its cosine and
/// sine exact to float32, times magnitude.
struct Rope {
    float* x;
    int64_t x_stride;
    int32_t rows, heads, head_dim, half;  ///< half: the number of frequencies
    const int32_t* positions;             ///< [rows]
    const float* frequencies;             ///< [half]
    float magnitude;
    int32_t interleaved;  ///< pairs (2i, 2i + 1) in place of (i, i + half)
};

/// x[:, c] += y, x[:, c] *= gain[c], out[i] = x[rows[i]], y[:, columns[j]] = x[:, j]
struct Add {
    float* x;
    int64_t x_stride;
    const float* y;
    int64_t y_stride;
    int32_t rows, cols;
};
struct ScaleColumns {
    float* x;
    int64_t x_stride;
    const float* gain;
    int32_t rows, cols;
};
struct GatherRows {
    const float* x;
    int64_t x_stride;
    const int32_t* indices;  ///< [rows]
    float* out;
    int64_t out_stride;
    int32_t rows, cols;
};
struct ScatterColumns {
    const float* x;
    int64_t x_stride;
    const int32_t* columns;  ///< [cols]
    float* y;
    int64_t y_stride;
    int32_t rows, cols;
};

enum class Pooling : uint32_t { mean, cls, max, last };  ///< as in device.h

/// out[s] = the pooled rows first[s] .. first[s] + count[s] - 1 of x; zeros where there are none.
struct Pool {
    const float* x;
    int64_t x_stride;
    const int32_t *first, *count;  ///< [sequences]
    float* out;
    int64_t out_stride;
    int32_t sequences, cols;
    Pooling pooling;
    int32_t normalize;  ///< to unit L2 norm: / max(norm, 1e-12)
};

// --- attention ----------------------------------------------------------------------------------------------------

/// Element i of row r of head h is data[h * head_stride + r * row_stride + i]; i8: times scales[h * scale_stride + r].
/// A cache holds [heads][rows][width], width = head_dim rounded up to 16, zeros behind head_dim; activations are f32
/// [rows][heads * head_dim].
struct KvSource {
    const void* data;
    Element element;
    int64_t head_stride, row_stride;
    const float* scales;
    int64_t scale_stride;
};

struct AttentionSequence {
    int32_t first_row, rows;  ///< its queries: rows of q and out
    int32_t first_key, keys;  ///< rows of k and v; query i sits at position keys - rows + i
};

constexpr int kAttentionBlock = 64;  ///< keys of an entry of the block table

/// out [.., heads * head_dim] = softmax(scale * q k^T ...) v for each sequence, as AttentionParams in device.h says.
struct Attention {
    const float* q;
    int64_t q_stride;
    float* out;
    int64_t out_stride;
    KvSource k, v;
    const AttentionSequence* sequences;  ///< [count] in device memory: lengths may change while the command stays the same
    int32_t count;
    /// [count][table_stride]: keys 64 b .. 64 b + 63 of a sequence are rows 64 * table[b] .. of k and v; null: from first_key on.
    const int32_t* block_table;
    int32_t table_stride;
    int32_t heads, kv_heads, head_dim;
    float scale;
    int32_t causal, window;  ///< window > 0: query at p sees keys p - window + 1 .. p
    float softcap;           ///< > 0: scores become softcap * tanh(score / softcap)
    const float* bias;       ///< [heads or 1, rows, keys] added to the scores, count == 1; or null
    int64_t bias_head_stride, bias_row_stride;
    int32_t max_rows;  ///< no sequence has more queries
    int32_t max_keys;  ///< nor more keys: a bound for the grid, rounded up generously
    int32_t exact;     ///< 1: float32 products (Precision::float32); 0: 16-bit operands and float32 sums allowed
    int32_t splits;    ///< over keys, of one-query sequences: 1 .. kAttentionSplits
    float* partials;   ///< [rows][heads][splits][width + 2] where splits > 1
};
constexpr int kAttentionSplits = 64;

/// Row t of x, [tokens, heads * head_dim], goes to row target[t] of the cache. i8: one scale for each head and row, the greatest
/// magnitude / 127.
struct StoreKv {
    const float* x;
    int64_t x_stride;
    const int32_t* target;  ///< [tokens]
    void* data;             ///< [heads][rows][width]
    float* scales;          ///< i8: [heads][rows]
    Element element;
    int32_t tokens, heads, head_dim;
    int64_t rows;
};

// --- adapters -----------------------------------------------------------------------------------------------------

/// See LinearAdapter in device.h.
struct AdapterEntry {
    const void *a, *b;  ///< [rank, in], [out, rank]; null where rank is 0
    Element a_element, b_element;
    int32_t rank;
    int32_t first;              ///< where its sums begin in a row of `low`
    float scale;                ///< of B (A x), the weight of the rows included
    float weight;               ///< of shift
    const float *gain, *shift;  ///< [out] or null
    int32_t pivot_is_bias;
};

/// The low-rank products of a batch whose rows name different adapters, and what else they do to y, in two kernels: A x for every
/// (row, adapter) pair, then for every row its pairs in order.
struct Adapt {
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
    const float* bias;  ///< [out] or null
    int32_t in, out;
    const AdapterEntry* entries;  ///< [number of adapters]
    /// Pairs, sorted by row: those of rows[i] are begin[i] .. begin[i + 1] - 1 of `pair_entry`.
    const int32_t *rows, *begin, *pair_entry;
    int32_t row_count, pair_count;
    int32_t max_rank;
    float* low;  ///< [pair_count, max_rank]
    /// Runs of consecutive positions i of `rows` with the very same entries: [segment_count] first and behind-the-last.
    const int32_t *segment_first, *segment_end;
    int32_t segment_count, max_segment;
};

// --- sampling -----------------------------------------------------------------------------------------------------

/// One token of a row of logits [vocab]. Filters as in runtime/sampler.h, penalties applied before.
struct SampleRow {
    float temperature;  ///< 0: greedy, the lowest id wins a tie
    int32_t top_k;      ///< 0: off
    float top_p, min_p;
    double uniform;  ///< [0, 1): the random number of this draw
};

struct Sample {
    const float* logits;
    int64_t logits_stride;
    const SampleRow* rows;  ///< [count]
    int32_t count, vocab;
    int32_t* tokens;  ///< [count]; -1: a logit is NaN or +infinity, or none is finite
    void* scratch;    ///< sample_scratch_bytes(count, vocab)
};

// --- memory -------------------------------------------------------------------------------------------------------

/// From pinned host memory, or within the device.
struct Copy {
    void* to;
    const void* from;
    uint64_t bytes;
    int32_t from_host;
};

enum class Op : uint32_t {
    copy,
    gemv,
    gemm,
    linear_f32,
    embed,
    transform_rows,
    rope,
    add,
    scale_columns,
    gather_rows,
    scatter_columns,
    pool,
    attention,
    store_kv,
    adapt,
    sample,
};

/// Before each struct of a list, which lie behind one another at multiples of 8 bytes.
struct CommandHeader {
    Op op;
    uint32_t bytes;  ///< of the struct behind it, rounded up to 8; less than all of it where its end is not used
};

}  // namespace halfbyte::cuda
