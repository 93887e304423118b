#include "storage/encode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "core/error.h"
#include "storage/bnb4.h"
#include "storage/storage.h"

namespace halfbyte {

namespace {

constexpr int kMaxBlock = 4096;

// bitsandbytes functional.py, get_4bit_type: NF4 has the quantiles of a normal distribution, FP4 the values of a float with
// a sign, two bits of exponent and one of mantissa, divided by the largest (12).
constexpr std::array<float, 16> kNf4Map = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
constexpr std::array<float, 16> kFp4Map = {
    0.0f, 0.0625f / 12,  8.0f / 12,  1.0f,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};

/// A 4-bit codebook ready for encoding: the code of x is order[number of midpoints below x].
struct Encoder4 {
    std::array<float, 16> map;
    std::array<uint8_t, 16> order;
    std::array<float, 15> midpoints;
    uint8_t zero_code;

    explicit Encoder4(const std::array<float, 16>& levels) : map(levels) {
        for (size_t i = 0; i < 16; i++) order[i] = uint8_t(i);
        // FP4 has zero twice: code 0 then 8, as torch's argsort leaves them.
        std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return map[a] < map[b]; });
        for (size_t i = 0; i < 15; i++) midpoints[i] = (map[order[i]] + map[order[i + 1]]) / 2;
        size_t below = 0;
        for (const float t : midpoints) below += 0.0f > t;
        zero_code = order[below];
    }
};

template <class T>
T* writable(const Plane& plane) {
    return static_cast<T*>(const_cast<void*>(plane.data));
}

/// What is encoded: float32 in memory, or a weight that is decoded a few rows at a time.
struct Source {
    const float* values;   // [rows, cols], or null
    const Weight* weight;  // the same shape, or null
    int64_t rows, cols;

    /// f(number, elements, count) for every block of `size` elements of the flattened matrix; the last may be short.
    template <class Block>
    void each_block(int64_t size, ThreadPool& pool, Block f) const {
        const int64_t total = rows * cols, blocks = (total + size - 1) / size;
        if (values != nullptr) {
            pool.parallel_for(blocks, std::max<int64_t>(1, 16384 / size), [&](int64_t begin, int64_t end) {
                for (int64_t b = begin; b < end; b++) f(b, values + b * size, std::min(size, total - b * size));
            });
            return;
        }
        // The fewest rows that are whole blocks, or a multiple of these.
        const int64_t whole = size / std::gcd(size, cols), together = whole * std::max<int64_t>(1, 16384 / (whole * cols));
        pool.parallel_for((rows + together - 1) / together, 1, [&](int64_t begin, int64_t end) {
            const auto decoded = std::make_unique_for_overwrite<float[]>(size_t(together * cols));
            for (int64_t group = begin; group < end; group++) {
                const int64_t first = group * together, last = std::min(first + together, rows);
                for (int64_t r = first; r < last; r++)
                    weight->storage->decode_row(*weight, r, decoded.get() + (r - first) * cols);
                const int64_t count = (last - first) * cols;
                for (int64_t at = 0; at < count; at += size)
                    f((first * cols + at) / size, decoded.get() + at, std::min(size, count - at));
            }
            for (const Plane& plane : weight->planes)
                if (weight->storage->in_row_order())
                    drop_pages(plane, begin * together, std::min(end * together, rows), rows);
        });
    }
};

/// max |x|. Infinities and NaN come out as such: all of them compare above every finite number as integers.
float largest_magnitude(const float* x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    return std::bit_cast<float>(largest);
}

/// x[count] are the elements from `first` on of the flattened matrix.
[[noreturn]] void fail_not_finite(const float* x, int64_t first, int64_t count, int64_t cols, std::string_view format) {
    int64_t i = 0;
    while (i < count - 1 && std::isfinite(x[i])) i++;
    fail(ErrorCode::invalid_argument, "quantize to ", format, ": values must be finite, found ", x[i], " in row ",
         (first + i) / cols, ", column ", (first + i) % cols);
}

/// One block as bitsandbytes quantises it (backends/default/ops.py, quantize_4bit). codes: [(count + 1) / 2].
void encode_block4(const Encoder4& encoder, const float* x, int64_t count, bool whole, float* absmax, uint8_t* packed) {
    float scaled[kMaxBlock];
    uint8_t codes[kMaxBlock + 1];
    // Whole blocks are multiplied by a reciprocal and keep an absmax of zero; a short last block is divided, and its absmax
    // is clamped before it is stored.
    const float clamped = std::max(*absmax, 1e-38f);
    if (whole) {
        const float reciprocal = 1.0f / clamped;
        for (int64_t i = 0; i < count; i++) scaled[i] = x[i] * reciprocal;
    } else {
        *absmax = clamped;
        for (int64_t i = 0; i < count; i++) scaled[i] = x[i] / clamped;
    }
    for (int64_t i = 0; i < count; i++) {
        int below = 0;
        for (size_t t = 0; t < 15; t++) below += scaled[i] > encoder.midpoints[t] ? 1 : 0;
        codes[i] = uint8_t(below);
    }
    for (int64_t i = 0; i < count; i++) codes[i] = encoder.order[codes[i]];
    codes[count] = encoder.zero_code;  // the padding of an odd count is an encoded zero
    for (int64_t i = 0; i < count; i += 2) packed[i / 2] = uint8_t(codes[i] << 4 | codes[i + 1]);
}

/// n values from first to last, as torch.linspace computes them: from both ends towards the middle.
void linspace(float first, float last, int n, float* out) {
    const float step = (last - first) / float(n - 1);
    for (int i = 0; i < n; i++) {
        out[i] = i < n / 2 ? std::fma(step, float(i), first) : std::fma(-step, float(n - i - 1), last);
    }
}

/// bitsandbytes functional.py, create_dynamic_map(signed=True): seven decades of 1, 2, 4 ... 64 means of each sign, 0 and 1.
std::array<float, 256> dynamic_map() {
    std::array<float, 256> map{};
    size_t size = 0;
    static constexpr float kDecade[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    for (int i = 0; i < 7; i++) {
        const int items = (1 << i) + 1;
        float boundaries[65];
        linspace(0.1f, 1.0f, items, boundaries);
        for (int j = 0; j + 1 < items; j++) {
            const float mean = (boundaries[j] + boundaries[j + 1]) / 2.0f;
            map[size++] = kDecade[i] * mean;
            map[size++] = -kDecade[i] * mean;
        }
    }
    map[size++] = 0.0f;
    map[size++] = 1.0f;
    std::sort(map.begin(), map.end());
    return map;
}

/// How bitsandbytes' CPU library finds the nearest entry of a map for x in [-1, 1]: it rounds x to one of 65536 points
/// (csrc/cpu_ops.cpp).
struct DynamicEncoder {
    std::array<float, 256> map = dynamic_map();
    std::array<uint8_t, 65536> nearest;

    DynamicEncoder() {
        int below = 0;
        for (int i = 0; i < 65536; i++) {
            const float x = 2.0f * float(i) / 65535.0f - 1.0f;
            while (below < 255 && x > (map[size_t(below)] + map[size_t(below) + 1]) * 0.5f) below++;
            nearest[size_t(i)] = uint8_t(below);
        }
    }
    uint8_t operator()(float x) const {
        const float clamped = std::isnan(x) ? -1.0f : std::clamp(x, -1.0f, 1.0f);
        return nearest[size_t(std::fma((clamped + 1.0f) * 0.5f, 65535.0f, 0.5f))];
    }
};

/// Replaces plain scales by bytes in blocks of 256 (functional.py, quantize_4bit with compress_statistics).
void double_quantize(Weight& weight, int64_t blocks) {
    static const DynamicEncoder encoder;
    const Plane plain = weight.planes[kBnb4Absmax];
    const float* absmax = plain.as<float>();
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += double(absmax[i]);
    weight.nested_offset = float(sum) / float(blocks);
    weight.nested_block_size = storage::kNestedBlockSize;
    const int64_t nested = (blocks + storage::kNestedBlockSize - 1) / storage::kNestedBlockSize;
    weight.planes[kBnb4Absmax] = allocate_plane(size_t(blocks));
    weight.planes[kBnb4NestedAbsmax] = allocate_plane(size_t(nested) * sizeof(float));
    weight.planes[kBnb4NestedMap] = allocate_plane(sizeof encoder.map);
    std::memcpy(writable<float>(weight.planes[kBnb4NestedMap]), encoder.map.data(), sizeof encoder.map);
    auto* bytes = writable<uint8_t>(weight.planes[kBnb4Absmax]);
    auto* nested_absmax = writable<float>(weight.planes[kBnb4NestedAbsmax]);
    for (int64_t n = 0; n < nested; n++) {
        const int64_t first = n * storage::kNestedBlockSize;
        const int64_t count = std::min<int64_t>(storage::kNestedBlockSize, blocks - first);
        float shifted[storage::kNestedBlockSize];
        for (int64_t i = 0; i < count; i++) shifted[i] = absmax[first + i] - weight.nested_offset;
        nested_absmax[n] = largest_magnitude(shifted, count);
        if (nested_absmax[n] == 0.0f) continue;  // bytes stay zero
        const float reciprocal = 1.0f / nested_absmax[n];
        for (int64_t i = 0; i < count; i++) bytes[first + i] = encoder(shifted[i] * reciprocal);
    }
}

Weight encode_bnb4(const Source& source, const EncodeOptions& options, ThreadPool& pool) {
    static const Encoder4 nf4(kNf4Map);
    static const Encoder4 fp4(kFp4Map);
    const bool is_nf4 = options.format == "nf4";
    const Encoder4& encoder = is_nf4 ? nf4 : fp4;
    const int block_size = options.block_size;
    if (block_size < 32 || block_size > kMaxBlock || (block_size & (block_size - 1)) != 0) {
        fail(ErrorCode::invalid_argument, "quantize to ", options.format, ": block size ", block_size,
             ", expected a power of two from 32 to 4096");
    }
    Weight weight;
    weight.rows = source.rows;
    weight.cols = source.cols;
    weight.storage = is_nf4 ? &nf4_storage() : &fp4_storage();
    weight.block_size = block_size;
    const int64_t count = weight.size();
    const int64_t blocks = storage::bnb4_blocks(weight);
    weight.planes[kBnb4Codes] = allocate_plane(size_t(count + 1) / 2);
    weight.planes[kBnb4Absmax] = allocate_plane(size_t(blocks) * sizeof(float));
    weight.planes[kBnb4Map] = allocate_plane(sizeof encoder.map);
    std::memcpy(writable<float>(weight.planes[kBnb4Map]), encoder.map.data(), sizeof encoder.map);
    auto* codes = writable<uint8_t>(weight.planes[kBnb4Codes]);
    auto* absmax = writable<float>(weight.planes[kBnb4Absmax]);
    source.each_block(block_size, pool, [&](int64_t block, const float* x, int64_t size) {
        const int64_t first = block * block_size;
        absmax[block] = largest_magnitude(x, size);
        if (!std::isfinite(absmax[block])) fail_not_finite(x, first, size, source.cols, options.format);
        encode_block4(encoder, x, size, size == block_size, absmax + block, codes + first / 2);
    });
    if (options.double_quant) double_quantize(weight, blocks);
    return weight;
}

/// gguf/quants.py, class Q8_0: scale = max |x| / 127 as float16; levels are rounded half away from zero by the float32
/// scale.
Weight encode_q8_0(const Source& source, ThreadPool& pool) {
    constexpr int kBlock = 32;
    constexpr int kBlockBytes = 34;
    if (source.cols % kBlock != 0) {
        fail(ErrorCode::invalid_argument, "quantize to q8_0: ", source.cols, " columns, expected a multiple of ", kBlock);
    }
    Weight weight;
    weight.rows = source.rows;
    weight.cols = source.cols;
    weight.storage = &q8_0_storage();
    weight.block_size = kBlock;
    const int64_t blocks = weight.size() / kBlock;
    weight.planes[0] = allocate_plane(size_t(blocks) * kBlockBytes);
    auto* out = writable<uint8_t>(weight.planes[0]);
    source.each_block(kBlock, pool, [&](int64_t block, const float* x, int64_t) {
        uint8_t* to = out + block * kBlockBytes;
        const float largest = largest_magnitude(x, kBlock);
        if (!std::isfinite(largest)) fail_not_finite(x, block * kBlock, kBlock, source.cols, "q8_0");
        const float scale = largest / 127;
        const uint16_t bits = f32_to_f16(scale);
        if (bits == 0x7c00) {
            fail(ErrorCode::invalid_argument, "quantize to q8_0: a value of magnitude ", largest, " in row ",
                 block * kBlock / source.cols, " is beyond the format's largest, 65504 * 127");
        }
        // The reciprocal of a subnormal may be infinite; such a scale is zero in float16 anyway.
        const float reciprocal = scale == 0 ? 0.0f : 1.0f / scale;
        const float inverse = std::isfinite(reciprocal) ? reciprocal : 0.0f;
        std::memcpy(to, &bits, sizeof bits);
        for (int j = 0; j < kBlock; j++) {
            const float scaled = x[j] * inverse;
            const int whole = int(scaled);
            const float rest = scaled - float(whole);
            to[2 + j] = uint8_t(int8_t(whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0)));
        }
    });
    return weight;
}

/// A level is rounded against the scale that is stored.
Weight encode_int8(const Source& source, ThreadPool& pool) {
    const int64_t cols = source.cols;
    const int64_t size = int8_block(cols);
    if (size == 0) {
        fail(ErrorCode::invalid_argument, "quantize to int8: ", cols, " columns, expected a multiple of 32");
    }
    constexpr int kMost = 127;
    Weight weight;
    weight.rows = source.rows, weight.cols = cols, weight.storage = &int8_storage(), weight.block_size = int32_t(size);
    const int64_t blocks = weight.size() / size;
    weight.planes[kInt8Levels] = allocate_plane(size_t(weight.size()));
    weight.planes[kInt8Scales] = allocate_plane(size_t(blocks) * sizeof(float));
    auto* levels = writable<int8_t>(weight.planes[kInt8Levels]);
    auto* scales = writable<float>(weight.planes[kInt8Scales]);
    source.each_block(size, pool, [&](int64_t block, const float* x, int64_t) {
        const float largest = largest_magnitude(x, size);
        if (!std::isfinite(largest)) fail_not_finite(x, block * size, size, cols, "int8");
        const float scale = largest / kMost;
        // In float64, where the inverse of a subnormal is finite.
        const double inverse = scale == 0 ? 0 : 1.0 / double(scale);
        scales[block] = scale;
        for (int64_t i = 0; i < size; i++) {
            const double level = std::nearbyint(double(x[i]) * inverse);
            levels[block * size + i] = int8_t(std::clamp(level, double(-kMost), double(kMost)));
        }
    });
    return weight;
}

Weight encode_float(const Source& source, DType dtype, ThreadPool& pool) {
    const int64_t rows = source.rows, cols = source.cols;
    const Plane plane = allocate_plane(size_t(rows) * size_t(cols) * size_of(dtype));
    constexpr int64_t kTogether = 256;
    source.each_block(kTogether, pool, [&](int64_t block, const float* x, int64_t count) {
        const int64_t first = block * kTogether;
        if (dtype == DType::f32) {
            std::memcpy(writable<float>(plane) + first, x, size_t(count) * sizeof(float));
            return;
        }
        auto* bits = writable<uint16_t>(plane) + first;
        for (int64_t i = 0; i < count; i++) bits[i] = dtype == DType::f16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    });
    return make_float_weight(plane.data, dtype, rows, cols, plane.owner);
}

Weight encode_source(const Source& source, const EncodeOptions& options, ThreadPool& pool) {
    int64_t count = 0;
    if (source.rows < 1 || source.cols < 1 || __builtin_mul_overflow(source.rows, source.cols, &count)) {
        fail(ErrorCode::invalid_argument, "quantize: expected a matrix [out, in] of at least one element, found [",
             source.rows, ", ", source.cols, "]");
    }
    if (options.format == "nf4" || options.format == "fp4") return encode_bnb4(source, options, pool);
    if (options.format == "int8") return encode_int8(source, pool);
    if (options.format == "q8_0") return encode_q8_0(source, pool);
    if (options.format == "f32") return encode_float(source, DType::f32, pool);
    if (options.format == "f16") return encode_float(source, DType::f16, pool);
    if (options.format == "bf16") return encode_float(source, DType::bf16, pool);
    fail(ErrorCode::invalid_argument, "quantize: unknown format \"", options.format,
         "\"; expected nf4, fp4, int8, q8_0, bf16, f16 or f32");
}

}  // namespace

Weight encode(const float* values, int64_t rows, int64_t cols, const EncodeOptions& options, ThreadPool& pool) {
    return encode_source({values, nullptr, rows, cols}, options, pool);
}

Weight encode(const Weight& weight, const EncodeOptions& options, ThreadPool& pool) {
    return encode_source({nullptr, &weight, weight.rows, weight.cols}, options, pool);
}

Weight transposed(const Weight& weight, ThreadPool& pool) {
    const Plane source = allocate_plane(size_t(weight.size()) * sizeof(float));
    const Plane result = allocate_plane(source.bytes);
    decode(weight, const_cast<float*>(source.as<float>()));
    const auto* from = source.as<float>();              // [weight.rows, weight.cols]
    auto* to = const_cast<float*>(result.as<float>());  // [weight.cols, weight.rows]
    pool.parallel_for(weight.cols, 16, [&](int64_t begin, int64_t end) {
        for (int64_t r = 0; r < weight.rows; r++)
            for (int64_t c = begin; c < end; c++) to[c * weight.rows + r] = from[r * weight.cols + c];
    });
    return encode(to, weight.cols, weight.rows, {.format = weight.storage->name()}, pool);
}

}  // namespace halfbyte
