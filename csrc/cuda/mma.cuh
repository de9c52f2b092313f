// Tensor cores: the only inline PTX there is, in small wrappers under PTX's own names.
#pragma once

#include <cstdint>

namespace sk::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return std::uint32_t(__cvta_generic_to_shared(p));
}

// Lane 8 k + r gives the address of row r of the 8 x 8 matrix k of 16-bit numbers; each lane gets two of each matrix,
// (l / 4, 2 (l % 4)) and the next; of the transposed, (2 (l % 4), l / 4) and the one below.
__device__ __forceinline__ void ldmatrix(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c [16, 8] += a [16, K] b [K, 8]
#define SK_MMA(name, shape, type)                                                                    \
  __device__ __forceinline__ void name(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, \
                                       std::uint32_t b1) {                                           \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type                                      \
        ".f32 "                                                                                      \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                            \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                             \
  }
SK_MMA(mma_tf32, "m16n8k8", "tf32")
SK_MMA(mma_bf16, "m16n8k16", "bf16")
SK_MMA(mma_fp16, "m16n8k16", "f16")
#undef SK_MMA

// To 10 bits, to nearest: tensor cores would cut the rest off
__device__ __forceinline__ float round_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// Of floats as tensor cores take them, bits
__device__ __forceinline__ std::uint32_t subtract(std::uint32_t a, std::uint32_t b) {
  std::uint32_t c;
  asm("sub.f32 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}

// Of the error in sobolev_kernels/math/coarse.py, where 16 bits of it are kept
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The same address, of which a compiler does not know it: places in it are worked out where they are used, and not kept
// in registers through loops
__device__ __forceinline__ float* made_here(float* at) {
  asm volatile("mov.b64 %0, %0;" : "+l"(at));
  return at;
}

// Of the warps that call it with the same number, from 1 to 15, so many threads
__device__ __forceinline__ void barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace sk::cuda
