// 16-bit numbers as tensor cores take them: fragments, and how they are rounded, multiplied and laid in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../mma.cuh"
#include "../primitives.cuh"

namespace sk::cuda {

// 16 rows and 16 columns, as sums of two products and as an operand: a lane has rows g and g + 8, and of columns
// 2t, 2t + 1, 2t + 8 and 2t + 9, where g = lane / 4 and t = lane % 4.
using Fragment = std::uint32_t[4];
using Sums = float[4];  // of 8 columns: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

// f(0) to f(n - 1), each number a type
template <int n>
struct Constant {
  constexpr SK_INLINE operator int() const { return n; }
};
template <int n, class F>
SK_INLINE void unrolled(F f) {
  if constexpr (n > 0) {
    unrolled<n - 1>(f);
    f(Constant<n - 1>{});
  }
}

template <Precision kPrecision>
struct Half;

template <>
struct Half<Precision::kBf16> {
  static constexpr std::uint32_t kOnes = 0x3F803F80u;
  static SK_INLINE std::uint32_t pack(float a, float b) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(two);
  }
  static SK_INLINE float low(std::uint32_t two) { return __uint_as_float(two << 16); }
  static SK_INLINE float high(std::uint32_t two) { return __uint_as_float(two & 0xFFFF0000u); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_bf16(c, a, b0, b1);
  }
};

template <>
struct Half<Precision::kFp16> {
  static constexpr std::uint32_t kOnes = 0x3C003C00u;
  static SK_INLINE std::uint32_t pack(float a, float b) {
    const __half2 two = __floats2half2_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(two);
  }
  static SK_INLINE float low(std::uint32_t two) { return __low2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE float high(std::uint32_t two) { return __high2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_fp16(c, a, b0, b1);
  }
};

SK_INLINE int lane() { return threadIdx.x % 32; }
SK_INLINE int warp() { return threadIdx.x / 32; }

// Chunk c of 8 numbers of a row of N: chunks lie in an order that depends on the row, so that eight rows of a chunk
// are in different banks. Arrays begin at multiples of 256 bytes, so that another chunk is `^ 16 c` away, if the bits
// of both differ, and eight or more rows farther has the same order.
template <int N>
SK_INLINE std::uint32_t place(int row, int c) {
  constexpr int kChunks = N / 8;
  const int order = kChunks >= 8 ? row % 8 : kChunks == 4 ? row / 2 % 4 : kChunks == 2 ? row / 4 % 2 : 0;
  return row * N * 2 + (c ^ order) * 16;
}

}  // namespace sk::cuda
