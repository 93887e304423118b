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
// 2^x, off by 2^-22 of it at most; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
// Each nibble of `selector` names a byte of low (0 .. 3) or high (4 .. 7), the lowest nibble that of the lowest byte.
__device__ __forceinline__ uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
    return __byte_perm(low, high, selector);
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
    cudaemu::load_matrix_x4(out, row, false, file, line);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    cudaemu::mma_m16n8k16_bf16(d, a, b, file, line);
}

inline void ldmatrix_x4_trans(uint32_t (&out)[4], const void* row, CUDAEMU_SITE) {
    cudaemu::load_matrix_x4(out, row, true, file, line);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDAEMU_SITE) {
    cudaemu::mma_m16n8k16_f16(d, a, b, file, line);
}
inline float exp2_approx(float x) {
    const float result = std::exp2(x);
    return result < 0x1p-126f ? 0.0f : result;
}
inline uint32_t byte_permute(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t byte = selector >> (4 * i) & 7u;
        result |= ((byte < 4 ? low : high) >> (8 * (byte % 4)) & 0xffu) << (8 * i);
    }
    return result;
}

}  // namespace halfbyte::cuda

#endif

namespace halfbyte::cuda {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    return value;
}

/// Byte i (a constant) of a word, signed, as a float: put below 2^23 as a fraction's last bits, which is quicker than a conversion.
__device__ __forceinline__ float signed_byte(uint32_t word, int i) {
    return __uint_as_float(byte_permute(word ^ 0x80808080u, 0x4b000000u, 0x7650u + uint32_t(i))) - 8388736.0f;
}

}  // namespace halfbyte::cuda
