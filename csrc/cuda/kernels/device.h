// What differs between nvcc and the emulator of tests/cuda. Every kernel file includes this and nothing else of either world;
// inline PTX lives here alone, one instruction to a function. Shared memory is declared through HB_SHARED_ARRAY(type, name, [dims])
// or HB_DYNAMIC_SHARED(name), and kernels are launched through launch().
#pragma once

#if !defined(HALFBYTE_CUDA_EMULATED) && !defined(__CUDACC__)
#error "kernels are compiled by nvcc, or with HALFBYTE_CUDA_EMULATED against tests/cuda/emulator"
#endif

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <tuple>
#include <utility>

#define HB_SHARED_ARRAY(type, name, dims) __shared__ __align__(16) type name dims
#define HB_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace halfbyte::cuda {

template <class... P, std::size_t... I>
cudaError_t launch_packed(const void* kernel, dim3 grid, dim3 block, std::size_t smem, cudaStream_t stream,
                          std::tuple<P...> parameters, std::index_sequence<I...>) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&std::get<I>(parameters)))...};
    return cudaLaunchKernel(kernel, grid, block, pointers, smem, stream);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t smem, cudaStream_t stream, A&&... arguments) {
    return launch_packed(reinterpret_cast<const void*>(kernel), grid, block, smem, stream,
                         std::tuple<P...>(std::forward<A>(arguments)...), std::index_sequence_for<P...>());
}

// 16 bytes from global to shared memory in the background; zeros where !valid.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l names row l%8 of matrix l/8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// d += a * b on tensor cores: a 16x16 by rows, b 16x8 by columns, d 16x8 float.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- more of sm_80 -----------------------------------------------------------------------------------------------

__device__ __forceinline__ void cp_async_8(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}
// Keeps the line in L1: for what other warps of the multiprocessor read as well.
__device__ __forceinline__ void cp_async_16_ca(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}
// Has L2 fetch the 128 bytes round it.
__device__ __forceinline__ void cp_async_16_l2_128(void* shared, const void* global, bool valid) {
    const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void ldmatrix_x1(uint32_t& out, const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(out) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&out)[2], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// a 16x8 by rows, b 8x8 by columns, of tf32 (to_tf32).
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t to_tf32(float value) {
    uint32_t out;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(value));
    return out;
}

// 16 bytes that are read once: kept out of L1, with L2 fetching the 128 bytes round them. Not for what the kernel writes.
__device__ __forceinline__ uint4 load_once(const uint4* global) {
    uint4 out;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
        : "l"(global));
    return out;
}
__device__ __forceinline__ void prefetch_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// Two floats rounded to a pair, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// 2^x to about 2 ulp, subnormals as 0; tanh to about 2^-11.
__device__ __forceinline__ float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
__device__ __forceinline__ float tanh_fast(float x) {
    float out;
    asm("tanh.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// Bit i of the result is bit 4 a_i + 2 b_i + c_i of the table: 0xea is (a & b) | c, 0x96 a ^ b ^ c.
template <int kTable>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(out) : "r"(a), "r"(b), "r"(c), "n"(kTable));
    return out;
}
// x << kBits where floating-point units multiply, not where shifts queue up; the compiler may not merge it with a shift before it.
template <int kBits>
__device__ __forceinline__ uint32_t shift_by_product(uint32_t x) {
    uint32_t out;
    asm("mul.lo.u32 %0, %1, %2;" : "=r"(out) : "r"(x), "n"(1 << kBits));
    return out;
}

}  // namespace halfbyte::cuda

#else

#include "cudaemu.h"

// typedef, so that `dims` can follow the name; the key's address names this array of this instance.
#define HB_SHARED_ARRAY(type, name, dims) \
    typedef type name##_array dims;       \
    static const char name##_key = 0;     \
    auto& name = *static_cast<name##_array*>(::cudaemu::shared_memory(&name##_key, sizeof(name##_array), 16))
#define HB_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(::cudaemu::dynamic_shared_memory())

namespace halfbyte::cuda {

using ::cudaemu::launch;

inline void cp_async_16(void* shared, const void* global, bool valid, CUDAEMU_SITE) {
    cudaemu::async_copy(shared, global, 16, valid ? 16 : 0, CUDAEMU_HERE);
}
inline void cp_async_4(void* shared, const void* global, bool valid, CUDAEMU_SITE) {
    cudaemu::async_copy(shared, global, 4, valid ? 4 : 0, CUDAEMU_HERE);
}
inline void cp_async_commit() { cudaemu::async_commit(); }
template <int kGroupsLeft>
void cp_async_wait() {
    cudaemu::async_wait(kGroupsLeft);
}
inline void ldmatrix_x4(uint32_t (&out)[4], const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix<4>(out, row, false, CUDAEMU_HERE);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    cudaemu::mma_m16n8k16(d, a, b, cudaemu::bf16_bits_to_float, CUDAEMU_HERE);
}

inline void cp_async_8(void* shared, const void* global, bool valid, CUDAEMU_SITE) {
    cudaemu::async_copy(shared, global, 8, valid ? 8 : 0, CUDAEMU_HERE);
}
inline void cp_async_16_ca(void* shared, const void* global, bool valid, CUDAEMU_SITE) {
    cudaemu::async_copy(shared, global, 16, valid ? 16 : 0, CUDAEMU_HERE);
}
inline void cp_async_16_l2_128(void* shared, const void* global, bool valid, CUDAEMU_SITE) {
    cudaemu::async_copy(shared, global, 16, valid ? 16 : 0, CUDAEMU_HERE);
}
inline void ldmatrix_x1(uint32_t& out, const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix<1>(reinterpret_cast<uint32_t (&)[1]>(out), row, false, CUDAEMU_HERE);
}
inline void ldmatrix_x2(uint32_t (&out)[2], const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix<2>(out, row, false, CUDAEMU_HERE);
}
inline void ldmatrix_x2_trans(uint32_t (&out)[2], const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix<2>(out, row, true, CUDAEMU_HERE);
}
inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix<4>(out, row, true, CUDAEMU_HERE);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    cudaemu::mma_m16n8k16(d, a, b, cudaemu::f16_bits_to_float, CUDAEMU_HERE);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    cudaemu::mma_m16n8k8_tf32(d, a, b, CUDAEMU_HERE);
}
inline uint32_t to_tf32(float value) { return cudaemu::to_tf32(value); }
inline uint4 load_once(const uint4* global, CUDAEMU_SITE) { return __ldg(global, file, line); }
inline void prefetch_l2(const void*) {}
inline uint32_t pack_bf16(float low, float high) { return cudaemu_bits<uint32_t>(__floats2bfloat162_rn(low, high)); }
inline uint32_t pack_f16(float low, float high) { return cudaemu_bits<uint32_t>(__floats2half2_rn(low, high)); }
inline float exp2_fast(float x) {
    const float out = std::exp2(x);
    return out < 0x1p-126f ? 0.0f : out;
}
inline float tanh_fast(float x) { return std::tanh(x); }
template <int kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    return cudaemu::bit_logic(a, b, c, kTable);
}
template <int kBits>
uint32_t shift_by_product(uint32_t x) {
    return x << kBits;
}

}  // namespace halfbyte::cuda

#endif

namespace halfbyte::cuda {

/// Byte i (a constant) of a word, signed, as a float: put below 2^23 as a fraction's last bits, which is quicker than a conversion.
__device__ __forceinline__ float signed_byte(uint32_t word, int i) {
    return __uint_as_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7650u + uint32_t(i))) - 8388736.0f;
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    return value;
}

}  // namespace halfbyte::cuda
