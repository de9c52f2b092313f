// 16-bit numbers as tensor cores take them: `ldmatrix` reads fragments, and those of the transposed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "numbers.cuh"

namespace sk::cuda {

// Chunk c of 8 numbers of a row of N: chunks lie in an order that depends on the row, so that eight rows of a chunk
// are in different banks. Arrays begin at multiples of 256 bytes, so that another chunk is `^ 16 c` away, if the bits
// of both differ, and eight or more rows farther has the same order.
template <int N>
SK_INLINE std::uint32_t place(int row, int c) {
  constexpr int kChunks = N / 8;
  const int order = kChunks >= 8 ? row % 8 : kChunks == 4 ? row / 2 % 4 : kChunks == 2 ? row / 4 % 2 : 0;
  return row * N * 2 + (c ^ order) * 16;
}

template <class Of>
struct HalfNumbers {
  using Real = Coarse;  // what formulas are computed in
  static constexpr int kBytes = 2;
  static constexpr bool kCut = false;
  // 16 rows and 16 columns, as sums of two products and as an operand: a lane has rows g and g + 8, and of columns
  // 2t, 2t + 1, 2t + 8 and 2t + 9.
  using Fragment = std::uint32_t[4];

  static SK_INLINE void unpack(const Fragment& from, float (&to)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[2 * i] = Of::low(from[i]), to[2 * i + 1] = Of::high(from[i]);
  }
  static SK_INLINE void pack(const float (&from)[8], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = Of::two(from[2 * i], from[2 * i + 1]);
  }
  // Of inputs a lane has columns 4t to 4t + 3 of its two rows: the order of their columns is that of the first weights.
  static SK_INLINE void pack_inputs(const float (&of)[2][4], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = Of::two(of[i % 2][i / 2 * 2], of[i % 2][i / 2 * 2 + 1]);
  }
  // Number i of a lane's row `half` of inputs in sums
  static SK_INLINE float input_of(const Sums (&c)[2], int half, int i) { return c[i / 2][2 * half + i % 2]; }
  template <int n>
  static SK_INLINE void pack_outputs(const float (&of)[n], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = 2 * i < n ? Of::two(of[2 * i % n], of[2 * i % n + 1]) : 0u;
  }

  // Columns 16 k to 16 k + 15 of 16 rows, from `first` on, of an array of N
  template <int N>
  static SK_INLINE void load(Fragment& to, const unsigned char* shared, std::uint32_t array, int first, int k) {
    ldmatrix(to, shared + ((array + place<N>(first + lane() % 16, lane() / 16)) ^ 32 * k));
  }
  template <int N>
  static SK_INLINE void store(unsigned char* shared, std::uint32_t array, int first, int k, const Fragment& from) {
    const std::uint32_t at = array + place<N>(first + lane() / 4, 0) + lane() % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<std::uint32_t*>(shared + (at ^ (32 * k + 16 * (i / 2))) + i % 2 * (8 * N * 2)) = from[i];
    }
  }
  template <int kPiece>
  static SK_INLINE void store_outputs(unsigned char* shared, std::uint32_t array, int first, const Fragment& from) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + lane() / 4 + 8 * i;
      const std::uint32_t at = array + place<kRegisterOutputs>(row, 0) + lane() % 4 * 4;
      *reinterpret_cast<std::uint32_t*>(shared + at) = from[2 * kPiece + i];
    }
  }

  static SK_INLINE void store_four(unsigned char* at, const float (&from)[4]) {
    *reinterpret_cast<uint2*>(at) = make_uint2(Of::two(from[0], from[1]), Of::two(from[2], from[3]));
  }

  // ---- Sums over rows, so many at a time: of arrays' columns 16 m, and 8 n ----

  static constexpr int kTogether = 32;
  using Left = Fragment[2];
  using Right = Fragment;
  static SK_INLINE void ones(Right& to) { to[0] = to[1] = to[2] = to[3] = Of::kOnes; }
  template <int N>
  static SK_INLINE std::uint32_t left_place(int m) {
    return place<N>(lane() % 8 + lane() / 16 * 8, 2 * m + lane() / 8 % 2);
  }
  // `next` pieces further
  template <int N>
  static SK_INLINE void left_of(const unsigned char* shared, std::uint32_t at, int next, int row, Left& to) {
#pragma unroll
    for (int i = 0; i < 2; ++i) ldmatrix_transposed(to[i], shared + (at ^ 32 * next) + (row + 16 * i) * (N * 2));
  }
  template <int N>
  static SK_INLINE std::uint32_t right_place(int n) {
    return place<N>(lane(), n);
  }
  // f(j, piece j) of so many pieces
  template <int N, int kPieces, class F>
  static SK_INLINE void each_right(const unsigned char* shared, std::uint32_t at, int row, F f) {
    unrolled<kPieces>([&](auto j) {
      Right b;
      ldmatrix_transposed(b, shared + (at ^ 16 * j) + row * (N * 2));
      f(j, b);
    });
  }
  static SK_INLINE void add(Sums& c, const Left& left, const Right& right) {
    Of::multiply(c, left[0], right[0], right[1]);
    Of::multiply(c, left[1], right[2], right[3]);
  }
  // Of the sums of pieces m and n, which of several from n on are side by side, number e
  static SK_INLINE int sum_row(int m, int e) { return 16 * m + lane() / 4 + e / 2 * 8; }
  template <int kPieces>
  static SK_INLINE int sum_column(int n, int j, int e) {
    return 8 * (n + j) + lane() % 4 * 2 + e % 2;
  }
  // Where column i of the inputs' gradients belongs
  static SK_INLINE int input_column(int i) { return i % 8 / 2 * 4 + i / 8 * 2 + i % 2; }
};

template <>
struct Numbers<Precision::kBf16> : HalfNumbers<Numbers<Precision::kBf16>> {
  static constexpr std::uint32_t kOnes = 0x3F803F80u;
  static constexpr float kLeastSlope = 0x1p-40f;
  static SK_INLINE std::uint32_t two(float a, float b) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
  static SK_INLINE float low(std::uint32_t two) { return __uint_as_float(two << 16); }
  static SK_INLINE float high(std::uint32_t two) { return __uint_as_float(two & 0xFFFF0000u); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_bf16(c, a, b0, b1);
  }
};

template <>
struct Numbers<Precision::kFp16> : HalfNumbers<Numbers<Precision::kFp16>> {
  static constexpr std::uint32_t kOnes = 0x3C003C00u;
  static constexpr float kLeastSlope = 0x1p-15f;  // of σ'': σ''/σ' is a number of this precision, too
  static SK_INLINE std::uint32_t two(float a, float b) {
    const __half2 both = __floats2half2_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
  static SK_INLINE float low(std::uint32_t two) { return __low2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE float high(std::uint32_t two) { return __high2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_fp16(c, a, b0, b1);
  }
};

}  // namespace sk::cuda
