// The instructions behind device.h's inline PTX: cp.async, ldmatrix, mma. Included by cudaemu.h.
#pragma once

#include <array>

namespace cudaemu {

void async_copy(void* shared_target, const void* global_source, unsigned bytes, unsigned valid_bytes, Site site);
void async_commit();
void async_wait(unsigned groups_left_in_flight);

// ldmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16: of lanes 8m .. 8m+7 the rows of matrix m are taken; what the other
// lanes name (x1, x2) is not looked at.
template <int kMatrices>
void load_matrix(uint32_t (&out)[kMatrices], const void* row, bool transpose, Site site) {
    static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
    if (lane() < 8 * kMatrices) {
        if (reinterpret_cast<uintptr_t>(row) % 16) fault("ldmatrix row is not 16-byte aligned", site);
        if (!is_shared_pointer(row)) fault("ldmatrix row is not in shared memory", site);
        note_access(row, 16, false, false, site);
        count_access(row, 16, false, site);
    }
    struct Request {
        const uint16_t* row;
        uint32_t* out;
        bool transpose;
    } request{static_cast<const uint16_t*>(row), out, transpose};
    warp_collective(~0u, site, request, [](Request** lanes) CUDAEMU_UNSEEN {
        for (int l = 0; l < 32; ++l)
            for (int m = 0; m < kMatrices; ++m) {
                uint16_t pair[2];
                for (int e = 0; e < 2; ++e) {
                    const int r = lanes[l]->transpose ? 2 * (l % 4) + e : l / 4;
                    const int c = lanes[l]->transpose ? l / 4 : 2 * (l % 4) + e;
                    pair[e] = lanes[8 * m + r]->row[c];
                }
                std::memcpy(&lanes[l]->out[m], pair, 4);
            }
    });
}

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float bf16_bits_to_float(uint16_t bits) { return bits_to_float(uint32_t(bits) << 16); }
inline float f16_bits_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits >> 15) << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// d += a * b, A [16][K] by rows, B [K][8] by columns. Sums in double, rounded once: hardware's order and rounding are not
// specified.
template <int K, class Request>
CUDAEMU_UNSEEN void multiply(Request** lanes, const float (&A)[16][K], const float (&B)[8][K]) {
    for (int l = 0; l < 32; ++l)
        for (int i = 0; i < 4; ++i) {
            const float *row = A[l / 4 + 8 * (i / 2)], *col = B[2 * (l % 4) + i % 2];
            double sum = lanes[l]->d[i];
            for (int k = 0; k < K; ++k) sum += double(row[k]) * double(col[k]);
            lanes[l]->d[i] = float(sum);
        }
}

struct MmaRequest {
    float* d;
    const uint32_t *a, *b;
};

// mma.sync.aligned.m16n8k16.row.col.f32.{bf16.bf16,f16.f16}.f32. Fragment layouts as in the PTX manual.
template <class Decode>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Decode decode, Site site) {
    MmaRequest request{d, a, b};
    warp_collective(~0u, site, request, [&](MmaRequest** lanes) CUDAEMU_UNSEEN {
        float A[16][16], B[8][16];
        for (int l = 0; l < 32; ++l) {
            const int group = l / 4, pair = 2 * (l % 4);
            for (int i = 0; i < 8; ++i) {  // register i/2 holds elements i and i+1 (low half first)
                const int row = group + 8 * ((i / 2) % 2), col = pair + i % 2 + 8 * (i / 4);
                A[row][col] = decode(uint16_t(lanes[l]->a[i / 2] >> (16 * (i % 2))));
            }
            for (int i = 0; i < 4; ++i)
                B[group][pair + i % 2 + 8 * (i / 2)] = decode(uint16_t(lanes[l]->b[i / 2] >> (16 * (i % 2))));
        }
        multiply<16>(lanes, A, B);
    });
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: the low 13 bits of the inputs are not looked at.
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
    MmaRequest request{d, a, b};
    warp_collective(~0u, site, request, [](MmaRequest** lanes) CUDAEMU_UNSEEN {
        float A[16][8], B[8][8];
        for (int l = 0; l < 32; ++l) {
            for (int i = 0; i < 4; ++i)
                A[l / 4 + 8 * (i % 2)][l % 4 + 4 * (i / 2)] = bits_to_float(lanes[l]->a[i] & ~0x1fffu);
            for (int i = 0; i < 2; ++i) B[l / 4][l % 4 + 4 * i] = bits_to_float(lanes[l]->b[i] & ~0x1fffu);
        }
        multiply<8>(lanes, A, B);
    });
}

// cvt.rna.tf32.f32: to the nearest, ties away from zero.
inline uint32_t to_tf32(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

inline uint32_t bit_logic(uint32_t a, uint32_t b, uint32_t c, unsigned table) {  // lop3.b32
    uint32_t out = 0;
    for (unsigned i = 0; i < 8; ++i)
        if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return out;
}

}  // namespace cudaemu
