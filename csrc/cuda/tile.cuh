// Arrays of a tile in shared memory, and the two products of all layers and streams.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mma.cuh"
#include "primitives.cuh"

namespace sk::cuda {

// [samples, n] in shared memory, in chunks of 16 bytes. The chunks of a row lie in an order that depends on the row, so
// that eight rows of a chunk, and four rows of two, are in different banks: what fragments of either operand are.
template <class T>
struct Rows {
  static constexpr int kChunk = 16 / sizeof(T);
  T* data;
  int n, chunks, mask, shift;

  SK_INLINE Rows(T* data, int n) : data(data), n(n), chunks(n / kChunk) {
    const int period = min(8, chunks & -chunks);
    mask = period - 1, shift = 3 - __popc(mask);
  }

  // Row `block + row`, where only `row` tells the order: block is a multiple of 8
  SK_INLINE T* chunk_at(int block, int row, int c) const {
    const int order = ((row >> shift) * 2 + (row >> 2 & 1)) & mask;
    return data + ((block + row) * chunks + (c ^ order)) * kChunk;
  }
  SK_INLINE T* at(int block, int row, int column) const {
    return chunk_at(block, row, column / kChunk) + column % kChunk;
  }
};

// What is multiplied, and fragments of it for a product of kDepth numbers: C [16, 8] += A [16, kDepth] B [kDepth, 8].
// A lane has c = rows g and g + 8, columns 2t and 2t + 1, where g = lane / 4 and t = lane % 4.
template <Precision kPrecision>
struct Operand;

// 16-bit numbers
template <class T>
struct HalfOperand {
  using Type = T;
  static constexpr int kDepth = 16;
  struct A {
    std::uint32_t r[4];
  };
  struct B {
    std::uint32_t r[2];
  };

  static SK_INLINE A rows(const Rows<T>& from, int row, int k, int lane) {
    A a;
    ldmatrix(a.r, from.chunk_at(row, lane % 16, k / 8 + lane / 16));
    return a;
  }
  // A of the transposed: k counts rows
  static SK_INLINE A columns(const Rows<T>& from, int column, int k, int lane) {
    A a;
    ldmatrix_transposed(a.r, from.chunk_at(k, lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
    return a;
  }
  static SK_INLINE void column_pair(const Rows<T>& from, int column, int k, int lane, B (&b)[2]) {
    std::uint32_t r[4];
    ldmatrix_transposed(r, from.chunk_at(k, lane % 16, column / 8 + lane / 16));
    b[0] = B{{r[0], r[1]}}, b[1] = B{{r[2], r[3]}};
  }
  // B of 16 columns from packed weights, which lie in the order of lanes
  static SK_INLINE void packed_pair(const unsigned char* block, int lane, B (&b)[2]) {
    const uint4 r = reinterpret_cast<const uint4*>(block)[lane];
    b[0] = B{{r.x, r.y}}, b[1] = B{{r.z, r.w}};
  }
  static SK_INLINE void place_of(int e, int& k, int& n) {  // of element e of 256
    const int lane = e / 8;
    k = e / 2 % 2 * 8 + lane % 4 * 2 + e % 2, n = e / 4 % 2 * 8 + lane / 4;
  }
};

template <>
struct Operand<Precision::kBf16> : HalfOperand<__nv_bfloat16> {
  static SK_INLINE Type of(float x) { return __float2bfloat16_rn(x); }
  static SK_INLINE void multiply(float (&c)[4], const A& a, const B& b) { mma_bf16(c, a.r, b.r[0], b.r[1]); }
};

template <>
struct Operand<Precision::kFp16> : HalfOperand<__half> {
  static SK_INLINE Type of(float x) { return __float2half_rn(x); }
  static SK_INLINE void multiply(float (&c)[4], const A& a, const B& b) { mma_fp16(c, a.r, b.r[0], b.r[1]); }
};

// Two products of 8 numbers
template <>
struct Operand<Precision::kTf32> {
  using Type = float;
  static constexpr int kDepth = 16;
  struct A {
    std::uint32_t r[2][4];
  };
  struct B {
    std::uint32_t r[2][2];
  };

  static SK_INLINE float of(float x) { return round_tf32(x); }
  static SK_INLINE A rows(const Rows<float>& from, int row, int k, int lane) {
    A a;
    for (int i = 0; i < 2; ++i) ldmatrix(a.r[i], from.chunk_at(row, lane % 16, k / 4 + 2 * i + lane / 16));
    return a;
  }
  static SK_INLINE A columns(const Rows<float>& from, int column, int k, int lane) {
    A a;
    for (int i = 0; i < 8; ++i) {
      a.r[i / 4][i % 4] = __float_as_uint(*from.at(k, i / 2 * 4 + lane % 4, column + i % 2 * 8 + lane / 4));
    }
    return a;
  }
  static SK_INLINE void column_pair(const Rows<float>& from, int column, int k, int lane, B (&b)[2]) {
    for (int i = 0; i < 8; ++i) {
      b[i / 4].r[i / 2 % 2][i % 2] = __float_as_uint(*from.at(k, i % 4 * 4 + lane % 4, column + i / 4 * 8 + lane / 4));
    }
  }
  static SK_INLINE void packed_pair(const unsigned char* block, int lane, B (&b)[2]) {
    for (int i = 0; i < 2; ++i) {
      const uint4 r = reinterpret_cast<const uint4*>(block)[32 * i + lane];
      b[i] = {{{r.x, r.y}, {r.z, r.w}}};
    }
  }
  static SK_INLINE void place_of(int e, int& k, int& n) {
    const int lane = e / 4 % 32;
    k = e % 4 * 4 + lane % 4, n = e / 128 * 8 + lane / 4;
  }
  static SK_INLINE void multiply(float (&c)[4], const A& a, const B& b) {
    for (int i = 0; i < 2; ++i) mma_tf32(c, a.r[i], b.r[i][0], b.r[i][1]);
  }
};

// float32 without tensor cores: a lane reads all of its two rows and two columns
template <>
struct Operand<Precision::kIeee> {
  using Type = float;
  static constexpr int kDepth = 8;
  struct A {
    float r[2][kDepth];
  };
  using B = A;

  static SK_INLINE float of(float x) { return x; }
  static SK_INLINE A rows(const Rows<float>& from, int row, int k, int lane) {
    A a;
    for (int i = 0; i < 4; ++i) four(from.chunk_at(row, i / 2 * 8 + lane / 4, k / 4 + i % 2), a.r[i / 2] + i % 2 * 4);
    return a;
  }
  static SK_INLINE A columns(const Rows<float>& from, int column, int k, int lane) {
    A a;
    for (int i = 0; i < 16; ++i) a.r[i / 8][i % 8] = *from.at(k, i % 8, column + i / 8 * 8 + lane / 4);
    return a;
  }
  static SK_INLINE void column_pair(const Rows<float>& from, int column, int k, int lane, B (&b)[2]) {
    for (int i = 0; i < 16; ++i) {
      const float2 two = *reinterpret_cast<const float2*>(from.at(k, i % 8, column + i / 8 * 8 + lane % 4 * 2));
      b[i / 8].r[0][i % 8] = two.x, b[i / 8].r[1][i % 8] = two.y;
    }
  }
  static SK_INLINE void packed_pair(const unsigned char* block, int lane, B (&b)[2]) {
    const float* data = reinterpret_cast<const float*>(block) + lane % 4 * 8;
    for (int i = 0; i < 8; ++i) four(data + i / 4 * 64 + i % 2 * 32 + i / 2 % 2 * 4, b[i / 4].r[i / 2 % 2] + i % 2 * 4);
  }
  static SK_INLINE void place_of(int e, int& k, int& n) {  // of element e of 128
    k = e / 32 % 2 * 4 + e % 4, n = e / 64 * 8 + e / 4 % 8;
  }
  static SK_INLINE void multiply(float (&c)[4], const A& a, const B& b) {
    for (int k = 0; k < kDepth; ++k) {
      for (int i = 0; i < 4; ++i) c[i] = fmaf(a.r[i / 2][k], b.r[i % 2][k], c[i]);
    }
  }

 private:
  static SK_INLINE void four(const float* from, float* to) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  }
};

// A warp's part of a product is 16 rows by 32 columns, or 16 where not all warps would have one.
struct WarpTile {
  float c[4][4] = {};
};

SK_INLINE int pairs_of_columns(int rows, int columns) {
  return rows / 16 * ((columns + 31) / 32) * 32 < int(blockDim.x) ? 1 : 2;
}

// c [samples, n] = a [samples, k] times packed weights [k, n], plus a bias if there is one.
// Not inlined: the streams of all layers take the same code.
template <Precision kPrecision>
__device__ __noinline__ void product(typename Operand<kPrecision>::Type* a, int k, const unsigned char* packed, int n,
                                     const float* bias, float* c, int samples) {
  using Op = Operand<kPrecision>;
  constexpr int kDepth = Op::kDepth, kBlock = 16 * kDepth * sizeof(typename Op::Type);
  const int lane = threadIdx.x % 32, most = pairs_of_columns(samples, n), across = (n / 16 + most - 1) / most;
  const Rows<typename Op::Type> from{a, k};
  const Rows<float> to{c, n};
  for (int tile = threadIdx.x / 32; tile < samples / 16 * across; tile += blockDim.x / 32) {
    const int row = tile / across * 16, column = tile % across * most * 16;
    const int pairs = min(most, (n - column) / 16);
    WarpTile sum;
    const unsigned char* block = packed + column / 16 * (k / kDepth) * kBlock;
#pragma unroll 1
    for (int i = 0; i < k; i += kDepth, block += kBlock) {
      const auto left = Op::rows(from, row, i, lane);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        if (pair >= pairs) break;
        typename Op::B right[2];
        Op::packed_pair(block + pair * (k / kDepth) * kBlock, lane, right);
        Op::multiply(sum.c[2 * pair], left, right[0]);
        Op::multiply(sum.c[2 * pair + 1], left, right[1]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j / 2 >= pairs) break;
      const int at = column + 8 * j + lane % 4 * 2;
      const float b0 = bias ? bias[at] : 0.0f, b1 = bias ? bias[at + 1] : 0.0f;
      for (int i = 0; i < 2; ++i) {
        store_pair(to.at(row, lane / 4 + 8 * i, at), sum.c[j][2 * i] + b0, sum.c[j][2 * i + 1] + b1);
      }
    }
  }
}

// gradient [m, n] += zᵀ [m, samples] h [samples, n], in the order of lanes: each number always by the same thread.
template <Precision kPrecision>
__device__ __noinline__ void add_outer(typename Operand<kPrecision>::Type* z, int m,
                                       typename Operand<kPrecision>::Type* h, int n, int samples, float* gradient) {
  using Op = Operand<kPrecision>;
  const int lane = threadIdx.x % 32, most = pairs_of_columns(m, n), across = (n / 16 + most - 1) / most;
  const Rows<typename Op::Type> left_rows{z, m}, right_rows{h, n};
  for (int tile = threadIdx.x / 32; tile < m / 16 * across; tile += blockDim.x / 32) {
    const int row = tile / across * 16, column = tile % across * most * 16;
    const int pairs = min(most, (n - column) / 16);
    WarpTile sum;
#pragma unroll 1
    for (int i = 0; i < samples; i += Op::kDepth) {
      const auto left = Op::columns(left_rows, row, i, lane);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        if (pair >= pairs) break;
        typename Op::B right[2];
        Op::column_pair(right_rows, column + 16 * pair, i, lane, right);
        Op::multiply(sum.c[2 * pair], left, right[0]);
        Op::multiply(sum.c[2 * pair + 1], left, right[1]);
      }
    }
    float4* to = reinterpret_cast<float4*>(gradient) + (row / 16 * (n / 8) + column / 8) * 32 + lane;
#pragma unroll
    for (int j = 0; j < 4; ++j, to += 32) {
      if (j / 2 >= pairs) break;
      const float4 before = *to;
      *to = make_float4(before.x + sum.c[j][0], before.y + sum.c[j][1], before.z + sum.c[j][2], before.w + sum.c[j][3]);
    }
  }
}

// Where number e of a gradient [m, n] lies in it
SK_INLINE void place_in_gradient(int e, int n, int& row, int& column) {
  const int block = e / 128, lane = e / 4 % 32;
  row = block / (n / 8) * 16 + lane / 4 + e / 2 % 2 * 8;
  column = block % (n / 8) * 8 + lane % 4 * 2 + e % 2;
}

}  // namespace sk::cuda
