// float32 as tensor cores take it, in products of TF32: rounded to it, or as two such numbers, of which three products
// are that of the floats to 2^-22 of it (3xTF32). Tensor cores cut a rest's last bit off, if it has so many.
#pragma once

#include "numbers.cuh"

namespace sk::cuda {

// A fragment's numbers as they are multiplied
template <int n, bool kSplit>
struct Rounded;

template <int n>
struct Rounded<n, false> {
  std::uint32_t of[n];
  SK_INLINE void set(int i, std::uint32_t x) { of[i] = x; }  // which was rounded before it was stored
};

template <int n>
struct Rounded<n, true> {
  std::uint32_t of[n], rest[n];
  SK_INLINE void set(int i, std::uint32_t x) {
    of[i] = (x + 0x1000u) & 0xFFFFE000u;  // as cvt.rna of what is finite; else the rest is no number either
    rest[i] = subtract(x, of[i]);
  }
};

// Arrays [rows, N] lie in chunks of 16 bytes, whose lowest three bits change with the row: so the rows that lanes
// read at a time are in different banks. A lane has rows g and g + 8 and of 16 columns 4t to 4t + 3, which is what sums
// of two products are if column g of the weights' piece p is 2g + p, and what an operand of two products is.
template <bool kSplit>
struct FloatNumbers {
  using Real = float;  // what formulas are computed in
  static constexpr int kBytes = 4;
  static constexpr float kLeastSlope = 0x1p-40f;
  static constexpr bool kCut = kSplit;  // which shows, if 23 bits are wanted
  using Fragment = std::uint32_t[8];    // in the order of sums: of columns 4t, 4t + 2 of both rows, then 4t + 1, 4t + 3
  using Operand = Rounded<8, kSplit>;
  using Pair = Rounded<2, kSplit>;

  static SK_INLINE std::uint32_t kept(float x) { return __float_as_uint(kSplit ? x : round_tf32(x)); }
  static SK_INLINE void unpack(const Fragment& from, float (&to)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = __uint_as_float(from[i]);
  }
  static SK_INLINE void pack(const float (&from)[8], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = kept(from[i]);
  }
  static SK_INLINE void pack_inputs(const float (&of)[2][4], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = kept(of[i / 2 % 2][i / 4 + i % 2 * 2]);
  }
  static SK_INLINE float input_of(const Sums (&c)[2], int half, int i) { return c[i % 2][2 * half + i / 2]; }
  template <int n>
  static SK_INLINE void pack_outputs(const float (&of)[n], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = i < n ? kept(of[i % n]) : 0u;
  }
  static SK_INLINE void operand(const Fragment& from, Operand& to) {
#pragma unroll
    for (int i = 0; i < 8; ++i) to.set(i, from[i]);
  }

  // c += product i of an operand's two
  template <class Left>
  static SK_INLINE void multiply(Sums& c, const Left& left, int i, const Pair& right) {
    const auto one = [&](const std::uint32_t* a, const std::uint32_t* b) {
      const std::uint32_t four[4] = {a[4 * i], a[4 * i + 2], a[4 * i + 1], a[4 * i + 3]};
      mma_tf32(c, four, b[0], b[1]);
    };
    if constexpr (kSplit) one(left.rest, right.of), one(left.of, right.rest);
    one(left.of, right.of);
  }

  static SK_INLINE int order(int row) { return row % 2 * 4 + row / 2 % 2 * 2; }
  // Of chunk c, below 8, of a row of inputs two rows are a line of banks
  template <int N>
  static SK_INLINE std::uint32_t place(int row, int c) {
    if constexpr (N == kRegisterInputs) {
      return row / 2 * 128 + (row % 2 * 64 ^ (c ^ row / 2 % 2 * 2) * 16);
    } else {
      return row * (N * 4) + (c ^ order(row)) * 16;
    }
  }
  template <int N>
  static SK_INLINE std::uint32_t place_of_lane(int first) {
    return place<N>(first + lane() / 4, lane() % 4);
  }
  template <int N>
  static SK_INLINE void load(Fragment& to, const unsigned char* shared, std::uint32_t array, int first, int k) {
    const unsigned char* at = shared + ((array + place_of_lane<N>(first)) ^ 64 * k);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(at + i * (8 * N * 4));
      to[2 * i] = four.x, to[2 * i + 4] = four.y, to[2 * i + 1] = four.z, to[2 * i + 5] = four.w;
    }
  }
  template <int N>
  static SK_INLINE void store(unsigned char* shared, std::uint32_t array, int first, int k, const Fragment& from) {
    unsigned char* at = shared + ((array + place_of_lane<N>(first)) ^ 64 * k);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint4*>(at + i * (8 * N * 4)) =
          make_uint4(from[2 * i], from[2 * i + 4], from[2 * i + 1], from[2 * i + 5]);
    }
  }
  template <int kPiece>
  static SK_INLINE void store_outputs(unsigned char* shared, std::uint32_t array, int first, const Fragment& from) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first + lane() / 4 + 8 * i;
      *reinterpret_cast<uint2*>(shared + array + (row * kRegisterOutputs + lane() % 4 * 2) * 4) =
          make_uint2(from[4 * kPiece + 2 * i], from[4 * kPiece + 2 * i + 1]);
    }
  }

  static SK_INLINE void store_four(unsigned char* at, const float (&from)[4]) {  // not rounded: no operand
    *reinterpret_cast<float4*>(at) = make_float4(from[0], from[1], from[2], from[3]);
  }

  // ---- Sums over rows, so many at a time: of arrays' columns 16 m, of which a lane has 2g and 2g + 1, and 8 n ----

  static constexpr int kTogether = 8;
  using Left = Rounded<4, kSplit>;
  using Right = Pair;
  static SK_INLINE void ones(Right& to) {
    for (int i = 0; i < 2; ++i) to.set(i, __float_as_uint(1.0f));
  }
  template <int N>
  static SK_INLINE std::uint32_t left_place(int m) {
    return place<N>(lane() % 4, 4 * m + lane() / 8) + lane() / 4 % 2 * 8;
  }
  template <int N>
  static SK_INLINE void left_of(const unsigned char* shared, std::uint32_t at, int next, int row, Left& to) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 two = *reinterpret_cast<const uint2*>(shared + (at ^ 64 * next) + (row + 4 * i) * (N * 4));
      to.set(i, two.x), to.set(2 + i, two.y);
    }
  }
  template <int N>
  static SK_INLINE std::uint32_t right_place(int n) {
    const int row = lane() % 4, column = lane() / 4;
    if constexpr (N == kRegisterOutputs) {
      return (row * kRegisterOutputs + column) * 4;
    } else if constexpr (N <= 32) {
      return place<N>(row, 2 * n + column / 4) + column % 4 * 4;
    } else {  // four pieces side by side: a lane has columns 4g to 4g + 3 of them
      return place<N>(row, 2 * n + column);
    }
  }
  template <int N, int kPieces, class F>
  static SK_INLINE void each_right(const unsigned char* shared, std::uint32_t at, int row, F f) {
    const auto rows = [&](int i, int next) { return shared + at + (row + 4 * i) * (N * 4) + 128 * next; };
    if constexpr (kPieces == 1) {
      Right b;
#pragma unroll
      for (int i = 0; i < 2; ++i) b.set(i, *reinterpret_cast<const std::uint32_t*>(rows(i, 0)));
      f(Constant<0>{}, b);
    } else {
      unrolled<kPieces / 4>([&](auto next) {
        std::uint32_t of[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 four = *reinterpret_cast<const uint4*>(rows(i, next));
          of[i][0] = four.x, of[i][1] = four.y, of[i][2] = four.z, of[i][3] = four.w;
        }
        unrolled<4>([&](auto j) {
          Right b;
#pragma unroll
          for (int i = 0; i < 2; ++i) b.set(i, of[i][j]);
          f(Constant<4 * next + j>{}, b);
        });
      });
    }
  }
  static SK_INLINE void add(Sums& c, const Left& left, const Right& right) { multiply(c, left, 0, right); }
  static SK_INLINE void first(Sums& c, const Left& left, const Right& right) {
    c[0] = c[1] = c[2] = c[3] = 0.0f;
    add(c, left, right);
  }
  static SK_INLINE int sum_row(int m, int e) { return 16 * m + lane() / 4 * 2 + e / 2; }
  template <int kPieces>
  static SK_INLINE int sum_column(int n, int j, int e) {
    const int column = lane() % 4 * 2 + e % 2;
    return kPieces == 1 ? 8 * n + column : 8 * (n + j / 4 * 4) + column * 4 + j % 4;
  }
  static SK_INLINE int input_column(int i) { return i; }
};

template <>
struct Numbers<Precision::kTf32> : FloatNumbers<false> {};
template <>
struct Numbers<Precision::kIeee> : FloatNumbers<true> {};

}  // namespace sk::cuda
