// How kernels read a TiledWeight (commands.h): where a lane's codes lie, what they stand for, which scale is theirs.
// A decoded value is bit for bit what the storage on the host says: products and sums here are rounded one by one.
#pragma once

#include "cuda/commands.h"
#include "cuda/kernels/device.h"

namespace halfbyte::cuda {

/// kVectors: uint4 a lane loads for a tile, each 512 bytes of a warp in a row.
template <Format kFormat>
struct Tile;
template <>
struct Tile<Format::codebook4> {
    static constexpr int kVectors = 1;
    static constexpr bool kHasScales = true;
};
template <>
struct Tile<Format::int8> {
    static constexpr int kVectors = 2;
    static constexpr bool kHasScales = true;
};
template <>
struct Tile<Format::f16> {
    static constexpr int kVectors = 4;
    static constexpr bool kHasScales = false;
};
template <>
struct Tile<Format::bf16> {
    static constexpr int kVectors = 4;
    static constexpr bool kHasScales = false;
};
template <>
struct Tile<Format::f32> {
    static constexpr int kVectors = 8;
    static constexpr bool kHasScales = false;
};

/// Calls f with an object whose member kFormat is `format` at compile time: with_format(format, [&](auto tag) { ... }).
template <Format kValue>
struct FormatTag {
    static constexpr Format kFormat = kValue;
};
template <class F>
cudaError_t with_format(Format format, F&& f) {
    switch (format) {
        case Format::codebook4: return f(FormatTag<Format::codebook4>());
        case Format::int8: return f(FormatTag<Format::int8>());
        case Format::f16: return f(FormatTag<Format::f16>());
        case Format::bf16: return f(FormatTag<Format::bf16>());
        case Format::f32: return f(FormatTag<Format::f32>());
    }
    return cudaErrorInvalidValue;
}

/// The v-th vector of a lane: the first element of a warp's 512 bytes plus `lane`.
template <Format kFormat>
__device__ __forceinline__ const uint4* tile_vector(const TiledWeight& w, int row_tile, int col_tile, int v, int lane) {
    const int64_t tile = int64_t(row_tile) * w.col_tiles + col_tile;
    return static_cast<const uint4*>(w.codes) + (tile * Tile<kFormat>::kVectors + v) * 32 + lane;
}

// --- levels -------------------------------------------------------------------------------------------------------

/// The levels of codebook4 with a copy for each lane, in that lane's own bank: level c of lane l is table[32 c + l], and no two
/// lanes of a warp ever ask one bank for different words. Needs a __syncthreads() before the table is read.
constexpr int kTableFloats = 16 * 32;
__device__ __forceinline__ void fill_table(float* table, const float* levels, int thread, int threads) {
    for (int i = thread; i < kTableFloats; i += threads) table[i] = levels[i / 32];
}

__device__ __forceinline__ uint32_t vector_word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/// Words of a step: what decode_words() takes.
template <Format kFormat>
constexpr int kStepWords = kFormat == Format::f32 ? 8 : Tile<kFormat>::kVectors;

/// Out of a tile's vectors; `step` must be a constant once loops are unrolled.
template <Format kFormat>
__device__ __forceinline__ void step_words(const uint4 (&codes)[Tile<kFormat>::kVectors], int step,
                                           uint32_t (&words)[kStepWords<kFormat>]) {
#pragma unroll
    for (int i = 0; i < kStepWords<kFormat>; ++i) {
        const int at = step * kStepWords<kFormat> + i;
        words[i] = vector_word(codes[at / 4], at % 4);
    }
}

/// The same straight from memory, for kernels that deal out single steps.
template <Format kFormat>
__device__ __forceinline__ void load_step(const TiledWeight& w, int row_tile, int col_tile, int step, int lane,
                                          uint32_t (&words)[kStepWords<kFormat>]) {
    constexpr int kWords = kStepWords<kFormat>;
    if constexpr (kWords == 1) {
        words[0] = __ldg(reinterpret_cast<const uint32_t*>(tile_vector<kFormat>(w, row_tile, col_tile, 0, lane)) + step);
    } else if constexpr (kWords == 2) {
        const auto* vector = reinterpret_cast<const uint2*>(tile_vector<kFormat>(w, row_tile, col_tile, step / 2, lane));
        const uint2 two = __ldg(vector + step % 2);
        words[0] = two.x;
        words[1] = two.y;
    } else {
#pragma unroll
        for (int v = 0; v < kWords / 4; ++v) {
            const uint4 four = __ldg(tile_vector<kFormat>(w, row_tile, col_tile, step * (kWords / 4) + v, lane));
#pragma unroll
            for (int i = 0; i < 4; ++i) words[4 * v + i] = vector_word(four, i);
        }
    }
}

/// The eight levels (float formats: the values) of a lane in columns 16 step .. 16 step + 15 of its tile: element 4 h + i is
/// row lane / 4 + 8 h, column 16 step + {0, 1, 8, 9}[i] + 2 (lane % 4). lane_table: table + lane, for codebook4.
template <Format kFormat>
__device__ __forceinline__ void decode_words(const uint32_t (&words)[kStepWords<kFormat>], const float* lane_table,
                                             float (&level)[8]) {
    if constexpr (kFormat == Format::codebook4) {
#pragma unroll
        for (int e = 0; e < 8; ++e) level[e] = lane_table[(words[0] >> 4 * e & 15) * 32];
    } else if constexpr (kFormat == Format::int8) {
        // byte + 128 as the low bits of a float whose unit is 1, less 2^23 + 128: exact, and no conversion instruction.
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const uint32_t bits = __byte_perm(words[e / 4] ^ 0x80808080u, 0x4b000000u, 0x7440u + unsigned(e % 4));
            level[e] = __fsub_rn(__uint_as_float(bits), 8388736.0f);
        }
    } else if constexpr (kFormat == Format::f32) {
#pragma unroll
        for (int e = 0; e < 8; ++e) level[e] = __uint_as_float(words[e]);
    } else {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            if constexpr (kFormat == Format::bf16) {
                level[2 * pair] = __uint_as_float(words[pair] << 16);
                level[2 * pair + 1] = __uint_as_float(words[pair] & 0xffff0000u);
            } else {
                level[2 * pair] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[pair])));
                level[2 * pair + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[pair] >> 16)));
            }
        }
    }
}

/// Both in one.
template <Format kFormat>
__device__ __forceinline__ void decode_step(const uint4 (&codes)[Tile<kFormat>::kVectors], int step, const float* lane_table,
                                            float (&level)[8]) {
    uint32_t words[kStepWords<kFormat>];
    step_words<kFormat>(codes, step, words);
    decode_words<kFormat>(words, lane_table, level);
}

// --- scales -------------------------------------------------------------------------------------------------------

struct ScaleOffset {
    float scale, offset;
};

/// Of row `row` (0 .. 15) of a row tile, and a block that may lie beyond the last one: then 0.
__device__ __forceinline__ ScaleOffset tile_scale(const TiledWeight& w, int row_tile, int row, int block) {
    if (block >= w.blocks) return {0.0f, 0.0f};
    const int64_t at = (int64_t(row_tile) * w.blocks + block) * 16 + row;
    ScaleOffset out;
    if (w.nested_levels != nullptr) {
        const int64_t index = (int64_t(row_tile) * 16 + row) * w.blocks + block;
        const int nested = min(int(index >> w.nested_shift), w.nested_count - 1);
        const float level = __ldg(w.nested_levels + __ldg(static_cast<const uint8_t*>(w.scales) + at));
        out.scale = __fadd_rn(__fmul_rn(level, __ldg(w.nested_scales + nested)), w.nested_offset);
    } else {
        out.scale = __ldg(static_cast<const float*>(w.scales) + at);
    }
    out.offset = w.offsets == nullptr ? 0.0f : __ldg(w.offsets + at);
    return out;
}

/// The block of the columns of a step: blocks are 16 columns or more, so that a step has one.
__device__ __forceinline__ int step_block(const TiledWeight& w, int col_tile, int step) {
    return (col_tile * kTileCols + step * 16) >> w.block_shift;
}

/// level * scale + offset as TiledWeight says it. A sum with an offset of 0 that is not there would turn -0 into 0.
__device__ __forceinline__ float tile_value(float level, const ScaleOffset& s, bool has_offsets) {
    const float product = __fmul_rn(level, s.scale);
    return has_offsets ? __fadd_rn(product, s.offset) : product;
}

}  // namespace halfbyte::cuda
