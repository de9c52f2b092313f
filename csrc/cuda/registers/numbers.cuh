// What both kinds of numbers that are multiplied, of 16 bits and of 32, have in common.
#pragma once

#include "../mma.cuh"
#include "../primitives.cuh"
#include "../registers.h"

namespace sk::cuda {

using Sums = float[4];  // of 8 columns: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), g = lane / 4, t = lane % 4

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

SK_INLINE float number(const Strided& a, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0) {
  return static_cast<const float*>(a.data)[i * a.stride[0] + j * a.stride[1] + k * a.stride[2]];
}

SK_INLINE int lane() { return threadIdx.x % 32; }
SK_INLINE int warp() { return threadIdx.x / 32; }

// Numbers of a precision: how they are rounded, how they lie in shared memory, and fragments of them.
template <Precision kPrecision>
struct Numbers;

}  // namespace sk::cuda
