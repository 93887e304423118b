#include "selftest.h"

#include "cuda/kernels/device.h"

namespace {

using namespace halfbyte::cuda;

// ------------------------------------------------------------------------------- what must be right

__global__ void ones(float* data) {
    if (threadIdx.x < 32 && blockIdx.x == 0) data[threadIdx.x] += 1;
}

// data[0] counts the threads, data[1 ..] the checks that failed, by number.
__global__ void collectives(float* data) {
    const int lane = threadIdx.x % 32;
    const auto check = [&](int number, bool right) {
        if (!right) atomicAdd(&data[number], 1.0f);
    };
    check(1, __ballot_sync(~0u, lane % 2) == 0xaaaaaaaau);
    check(2, __shfl_down_sync(~0u, lane, 1) == (lane < 31 ? lane + 1 : 31));
    check(3, __shfl_up_sync(~0u, lane, 2, 8) == (lane % 8 >= 2 ? lane - 2 : lane));
    check(4, __shfl_sync(~0u, lane, 3, 16) == lane / 16 * 16 + 3);
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    int pair = lane ^ 1;
    if (lane < 16) pair = __shfl_xor_sync(half, lane, 1);
    check(5, pair == (lane ^ 1));
    check(6, __reduce_add_sync(~0u, lane - 16) == -16 && __reduce_max_sync(~0u, unsigned(lane)) == 31);
    check(7, __reduce_or_sync(half, 1u << lane) == half && __reduce_min_sync(half, lane) == lane / 16 * 16);
    check(8, __match_any_sync(~0u, lane % 4) == 0x11111111u << lane % 4);
    int all = 0;
    check(9, __match_all_sync(~0u, 7, &all) == ~0u && all);
    check(10, __any_sync(~0u, lane == 3) && !__all_sync(~0u, lane == 3) && __all_sync(half, 1));
    check(11, __syncthreads_count(lane < 3) == 6);
    check(12, __syncthreads_or(threadIdx.x == 63) != 0 && __syncthreads_or(0) == 0);
    check(13, __syncthreads_and(1) != 0 && __syncthreads_and(threadIdx.x != 5) == 0);
    check(14, __shfl_xor_sync(~0u, 1.5 * lane, 8) == 1.5 * (lane ^ 8));
    check(15, warp_sum(1) == 32);
    atomicAdd(data, 1.0f);  // from every block
}

__global__ void bits(float* data) {
    const auto check = [&](int number, bool right) {
        if (!right) atomicAdd(&data[number], 1.0f);
    };
    check(1, __byte_perm(0x33221100u, 0x77665544u, 0x7205) == 0x77220055u);
    check(2, lop3<0xea>(0xffu, 0x0fu, 0x100u) == 0x10fu && lop3<0x96>(5u, 3u, 9u) == (5u ^ 3u ^ 9u));
    check(3, pack_bf16(1.0f, -2.0f) == 0xc0003f80u && pack_f16(1.0f, -2.0f) == 0xc0003c00u);
    check(4, __funnelshift_r(0x80000001u, 3u, 1) == 0xc0000000u && __funnelshift_l(0x80000001u, 3u, 1) == 7u);
    check(5, __float2int_rn(2.5f) == 2 && __float2int_rn(1e20f) == 2147483647 && __float2int_rn(NAN) == 0);
    check(6, __float2int_ru(1.25f) == 2 && __float2int_rd(-1.25f) == -2 && __float2uint_rn(-3) == 0);
    check(7, exp2_fast(3) == 8 && exp2_fast(-140) == 0 && exp2_fast(-INFINITY) == 0);
    check(8, __brev(1) == 0x80000000u && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && __popc(255) == 8);
    check(9, __dp4a(0x01ff7f80, 0x02030101, 5) == 2 - 3 + 127 - 128 + 5 && __umulhi(1u << 31, 6) == 3);
    check(10, __low2float(__hfma2(__floats2half2_rn(2, 3), __floats2half2_rn(5, 6), __floats2half2_rn(1, 1))) == 11);
    check(11, to_tf32(1.0f) == 0x3f800000u && to_tf32(__uint_as_float(0x3f801000u)) == 0x3f802000u);
    check(12, cudaemu::f16_bits_to_float(1) == 0x1p-24f && cudaemu::f16_bits_to_float(0xfc00) == -INFINITY);
    if (threadIdx.x == 0) {
        auto* const word = reinterpret_cast<unsigned*>(data + 32);
        *word = 1;
        check(13, atomicInc(word, 1) == 1 && *word == 0 && atomicDec(word, 5) == 0 && *word == 5);
        check(14,
              atomicCAS(word, 5, 7) == 5 && atomicExch(word, 2) == 7 && atomicOr(word, 4) == 2 && atomicAnd(word, 5) == 6);
        check(15, atomicMax(word, 9) == 4 && atomicMin(word, 3) == 9 && atomicSub(word, 1) == 3 && *word == 2);
    }
}

// data: A 16x16 and B 16x8 (float, whole numbers), then D of mma with bf16, f16, tf32 each 16x8 at 512, 640, 768.
__global__ void products(float* data) {
    HB_SHARED_ARRAY(__nv_bfloat16, a_bf16, [16][24]);
    HB_SHARED_ARRAY(__nv_bfloat16, b_bf16, [16][8]);
    HB_SHARED_ARRAY(__half, a_f16, [16][24]);
    HB_SHARED_ARRAY(__half, b_f16, [16][8]);
    const int lane = threadIdx.x;
    if (lane >= 32) return;
    const float *a = data, *b = data + 256;
    for (int i = lane; i < 256; i += 32) {
        a_bf16[i / 16][i % 16] = __float2bfloat16(a[i]);
        a_f16[i / 16][i % 16] = __float2half(a[i]);
    }
    for (int i = lane; i < 128; i += 32) {
        b_bf16[i / 8][i % 8] = __float2bfloat16(b[i]);
        b_f16[i / 8][i % 8] = __float2half(b[i]);
    }
    __syncwarp();
    uint32_t fragment_a[4], fragment_b[2], halves[4];
    float d[3][4] = {};
    ldmatrix_x4(fragment_a, &a_bf16[lane % 16][lane / 16 * 8]);
    ldmatrix_x2_trans(fragment_b, &b_bf16[lane % 16][0]);  // B is by rows, the fragment by columns
    mma_bf16(d[0], fragment_a, fragment_b);
    ldmatrix_x4(fragment_a, &a_f16[lane % 16][lane / 16 * 8]);
    ldmatrix_x4_trans(halves, &b_f16[lane % 16][0]);  // the rows twice over
    fragment_b[0] = halves[2];
    fragment_b[1] = halves[1];
    mma_f16(d[1], fragment_a, fragment_b);
    for (int k = 0; k < 16; k += 8) {
        for (int i = 0; i < 4; ++i) fragment_a[i] = to_tf32(a[(lane / 4 + 8 * (i % 2)) * 16 + k + lane % 4 + 4 * (i / 2)]);
        for (int i = 0; i < 2; ++i) fragment_b[i] = to_tf32(b[(k + lane % 4 + 4 * i) * 8 + lane / 4]);
        mma_tf32(d[2], fragment_a, fragment_b);
    }
    for (int m = 0; m < 3; ++m)
        for (int i = 0; i < 4; ++i) data[512 + 128 * m + (lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[m][i];
}

__global__ void neighbours(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    s[threadIdx.x] = 1;
    __syncwarp();
    data[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x ^ 1];  // within a warp: fine
}

// Every block writes its part, the last to come adds them: with what is missing for it to be right.
template <int kMissing>
__global__ void last_block(float* data) {
    data[1024 + blockIdx.x * 64 + threadIdx.x] = 1;
    if (kMissing != 1) __threadfence();
    if (kMissing != 2) __syncthreads();
    HB_SHARED_ARRAY(bool, last, [1]);
    if (threadIdx.x == 0) {
        last[0] = atomicInc(reinterpret_cast<unsigned*>(data), gridDim.x - 1) == gridDim.x - 1;
        if (kMissing != 3) __threadfence();
    }
    __syncthreads();
    if (!last[0]) return;
    float sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += data[1024 + b * 64 + threadIdx.x];
    data[64 + threadIdx.x] = sum;
}

// ------------------------------------------------------------------------------ what must be found

__global__ void divergent_barrier(float*) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void missed_barrier(float*) {
    if (threadIdx.x != 5) __syncthreads();
}
__global__ void missing_lane(float*) {
    if (threadIdx.x != 5)
        __syncwarp();
    else
        __syncthreads();
}
__global__ void exited_lane(float*) {
    if (threadIdx.x != 5) __syncwarp();
}
__global__ void divergent_warp(float*) {
    if (threadIdx.x % 32 < 16)
        __syncwarp();
    else
        __syncwarp();
}
__global__ void wrong_mask(float*) { __shfl_sync(0xfffffffeu, 1, 1); }
__global__ void wrong_width(float*) { __shfl_sync(~0u, 1, 1, 12); }
__global__ void trap(float*) {
    if (threadIdx.x == 7) __trap();
}
__global__ void too_much_shared(float*) {
    HB_SHARED_ARRAY(float, s, [20000]);
    s[0] = 1;
}
__global__ void dynamic(float* data) {
    HB_DYNAMIC_SHARED(s);
    s[threadIdx.x] = 1;
    data[threadIdx.x] = s[threadIdx.x];
}
__global__ void misaligned_copy(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    cp_async_16(&s[1], data, true);
}
__global__ void copy_from_shared(float*) {
    HB_SHARED_ARRAY(float, s, [64]);
    cp_async_4(&s[1], &s[2], true);
}
__global__ void misaligned_matrix(float*) {
    HB_SHARED_ARRAY(float, s, [512]);
    uint32_t out[4];
    ldmatrix_x4(out, &s[threadIdx.x % 32 * 4 + 1]);
}
__global__ void matrix_of_global(float* data) {
    uint32_t out[2];
    ldmatrix_x2(out, data);
}
__global__ void cached_load_of_shared(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    s[threadIdx.x] = 1;
    data[threadIdx.x] = __ldg(&s[threadIdx.x]);
}
__global__ void misaligned_atomic(float* data) {
    atomicAdd(reinterpret_cast<float*>(reinterpret_cast<char*>(data) + 2), 1.0f);
}
// Values only: what is read must be NaN, whatever the order.
__global__ void unfinished_copy(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    cp_async_4(&s[threadIdx.x], &data[64], true);
    cp_async_commit();
    data[threadIdx.x] = s[threadIdx.x];
    cp_async_wait<0>();
}

__global__ void unwritten(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    data[threadIdx.x] = s[threadIdx.x];
}
__global__ void blocks_collide(float* data) { data[threadIdx.x] = 1; }
__global__ void warps_collide(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    s[threadIdx.x] = 1;
    __syncwarp();
    data[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void lanes_collide(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    s[threadIdx.x] = 1;
    data[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void overwrites(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    s[threadIdx.x] = 1;
    __syncthreads();
    data[threadIdx.x] = s[63 - threadIdx.x];
    s[threadIdx.x] = 2;
}
__global__ void atomic_and_plain(float* data) {
    if (threadIdx.x == 1)
        atomicAdd(data, 1.0f);
    else if (threadIdx.x == 40)
        data[0] = 2;
}
__global__ void early_read_of_copy(float* data) {
    HB_SHARED_ARRAY(float, s, [64]);
    cp_async_4(&s[threadIdx.x], &data[threadIdx.x], true);
    cp_async_commit();
    cp_async_wait<0>();
    data[threadIdx.x] = s[threadIdx.x ^ 32];  // no barrier
}
__global__ void host_memory(float* data) {  // data: holds a host pointer
    const float* const host = *reinterpret_cast<const float* const*>(data);
    data[64 + threadIdx.x] = host[0];
}
__global__ void past_the_end(float* data) { data[(1 << 16) + threadIdx.x] = 1; }
__global__ void past_shared(float* data) {
    HB_SHARED_ARRAY(float, s, [63]);
    s[threadIdx.x] = 1;
    data[0] = s[0];
}

// -------------------------------------------------------------------- what the table must show

template <int kStride, class T>
__global__ void shared_stride(float* data) {
    HB_DYNAMIC_SHARED(memory);
    T* const s = reinterpret_cast<T*>(memory);
    s[threadIdx.x % 32 * kStride] = *reinterpret_cast<const T*>(data);  // strided
    __syncthreads();
    *reinterpret_cast<T*>(data + 1024 + threadIdx.x * 4) = s[threadIdx.x % 32 * kStride];
}
template <int kPitch>
__global__ void matrix_pitch(float* data) {
    HB_SHARED_ARRAY(__half, s, [16][kPitch]);
    for (int i = threadIdx.x; i < 16 * 16; i += 32) s[i / 16][i % 16] = __float2half(1);
    __syncwarp();
    uint32_t out[4];
    ldmatrix_x4(out, &s[threadIdx.x % 16][threadIdx.x / 16 * 8]);
    data[threadIdx.x] = float(out[0]);
}
template <int kStride, int kOffset, class T>
__global__ void global_stride(float* data) {
    const T* const t = reinterpret_cast<const T*>(data);
    reinterpret_cast<T*>(data + (1 << 15))[threadIdx.x] = t[threadIdx.x * kStride + kOffset];
}
__global__ void broadcast(float* data) {
    for (int i = 0; i < int(threadIdx.x % 2) + 2; ++i) data[64 + threadIdx.x] = data[i];  // half of the lanes once more
}
__global__ void copy_rows(float* data) {
    HB_SHARED_ARRAY(float, s, [256]);
    cp_async_16(&s[threadIdx.x * 4], &data[threadIdx.x * 4], true);
    cp_async_commit();
    cp_async_wait<0>();
}

struct Kernel {
    const char* name;
    void (*kernel)(float*);
};
#define SELFTEST(name) {#name, name}
const Kernel kKernels[] = {
    SELFTEST(ones),
    SELFTEST(collectives),
    SELFTEST(bits),
    SELFTEST(products),
    SELFTEST(neighbours),
    SELFTEST(last_block<0>),
    SELFTEST(last_block<1>),
    SELFTEST(last_block<2>),
    SELFTEST(last_block<3>),
    SELFTEST(divergent_barrier),
    SELFTEST(missed_barrier),
    SELFTEST(missing_lane),
    SELFTEST(exited_lane),
    SELFTEST(divergent_warp),
    SELFTEST(wrong_mask),
    SELFTEST(wrong_width),
    SELFTEST(trap),
    SELFTEST(too_much_shared),
    SELFTEST(dynamic),
    SELFTEST(misaligned_copy),
    SELFTEST(copy_from_shared),
    SELFTEST(misaligned_matrix),
    SELFTEST(matrix_of_global),
    SELFTEST(cached_load_of_shared),
    SELFTEST(misaligned_atomic),
    SELFTEST(unfinished_copy),
    SELFTEST(unwritten),
    SELFTEST(blocks_collide),
    SELFTEST(warps_collide),
    SELFTEST(lanes_collide),
    SELFTEST(overwrites),
    SELFTEST(atomic_and_plain),
    SELFTEST(early_read_of_copy),
    SELFTEST(host_memory),
    SELFTEST(past_the_end),
    SELFTEST(past_shared),
    SELFTEST(matrix_pitch<64>),
    SELFTEST(matrix_pitch<72>),
    SELFTEST(broadcast),
    SELFTEST(copy_rows),
    {"shared_stride<1>", shared_stride<1, float>},
    {"shared_stride<2>", shared_stride<2, float>},
    {"shared_stride<8>", shared_stride<8, float>},
    {"shared_stride<32>", shared_stride<32, float>},
    {"shared_stride<33>", shared_stride<33, float>},
    {"shared_stride2<1>", shared_stride<1, float2>},
    {"shared_stride2<2>", shared_stride<2, float2>},
    {"shared_stride4<1>", shared_stride<1, float4>},
    {"shared_stride4<4>", shared_stride<4, float4>},
    {"global_stride<1>", global_stride<1, 0, float>},
    {"global_stride<2>", global_stride<2, 0, float>},
    {"global_stride<8>", global_stride<8, 0, float>},
    {"global_stride<1,1>", global_stride<1, 1, float>},
    {"global_stride4<1>", global_stride<1, 0, float4>},
};

const Kernel* lookup(const std::string& name) {
    for (const Kernel& k : kKernels)
        if (name == k.name) return &k;
    return nullptr;
}

}  // namespace

namespace selftest {

const void* find(const std::string& name) { return reinterpret_cast<const void*>(lookup(name)->kernel); }

cudaError_t launch(const std::string& name, unsigned blocks, float* data, cudaStream_t stream, unsigned threads,
                   size_t dynamic_shared_bytes) {
    const Kernel* const found = lookup(name);
    if (!found) return cudaErrorUnknown;
    return halfbyte::cuda::launch(found->kernel, dim3(blocks), dim3(threads), dynamic_shared_bytes, stream, data);
}

}  // namespace selftest
