// Products of float32 with the weights, by tensor cores.
#pragma once

#include "block.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, Room kRoom>
struct FloatProducts : RegisterBlock<kPrecision, H, kGroups, kRoom> {
  using Block = RegisterBlock<kPrecision, H, kGroups, kRoom>;
  using Block::Block;
  using Block::fragment, Block::has, Block::own, Block::part, Block::shared;
  using Block::kDepth, Block::kMine, Block::kOutputPieces, Block::kRoomy;
  using typename Block::Columns, typename Block::Fragment, typename Block::Operands, typename Block::To;
  using Operand = typename To::Operand;
  using Pair = typename To::Pair;

  // Of a chunk of weights [H, N]: rows 16 j + 2 g + p of a chunk are read at a time, and rows 16 k + 4 t + i of two
  template <int N>
  static SK_INLINE std::uint32_t weight_place(int row, int c) {
    const std::uint32_t order = row / 4 % 2 * 2 + (row / 8 ^ row / 2) % 2 * 4;
    if constexpr (N == kRegisterInputs) {
      return row / 2 * 128 + ((row % 2 * 4 + c) ^ order) * 16;
    } else {
      return row * (N * 4) + (c ^ order) * 16;
    }
  }
  // Of the last layer's, [8, H]
  static SK_INLINE std::uint32_t last_place(int row, int c) {
    return row * (H * 4) + (c ^ (row / 2 % 2 * 2 + (row / 4 ^ row) % 2 * 4)) * 16;
  }
  // Weights of a row from k on, two or four
  template <int n>
  static SK_INLINE void put(unsigned char* to, bool is_first, bool is_last, int row, int k, const float (&of)[n]) {
    const std::uint32_t at = is_first  ? weight_place<kRegisterInputs>(row, k / 4)
                             : is_last ? last_place(row, k / 4)
                                       : weight_place<H>(row, k / 4);
    if constexpr (n == 4) {
      *reinterpret_cast<uint4*>(to + at) =
          make_uint4(To::kept(of[0]), To::kept(of[1]), To::kept(of[2]), To::kept(of[3]));
    } else {
      *reinterpret_cast<uint2*>(to + at + k % 4 * 4) = make_uint2(To::kept(of[0]), To::kept(of[1]));
    }
  }

  SK_INLINE void add_bias(Columns& c, int l) const {
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      const float4 four = Block::template biases<float4>(l, (part() * kMine + j) * 16 + lane() % 4 * 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        c[2 * j][2 * half] += four.x, c[2 * j][2 * half + 1] += four.z;
        c[2 * j + 1][2 * half] += four.y, c[2 * j + 1][2 * half + 1] += four.w;
      }
    }
  }

  // ---- Weights as the right side of two products ----

  // Row n of them, 16 inputs: pairs 0 and 1
  SK_INLINE void row_pairs(std::uint32_t at, Pair (&to)[2]) const {
    const uint4 four = *reinterpret_cast<const uint4*>(shared + at);
    to[0].set(0, four.x), to[0].set(1, four.z), to[1].set(0, four.y), to[1].set(1, four.w);
  }
  // Columns 2g and 2g + 1 of four rows, of which two are `half` a line of banks away: of both pieces p pairs 0 and 1
  SK_INLINE void column_pairs(const std::uint32_t (&at)[4], Pair (&to)[2][2]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 two = *reinterpret_cast<const uint2*>(shared + at[i]);
      to[0][i % 2].set(i / 2, two.x), to[1][i % 2].set(i / 2, two.y);
    }
  }
  SK_INLINE void multiply(Sums& c, const Operand& left, const Pair (&right)[2]) const {
    To::multiply(c, left, 0, right[0]);
    To::multiply(c, left, 1, right[1]);
  }
  SK_INLINE void operand(const Operands& a, int k, Operand& to) const {
    Fragment from;
    fragment(a, k, from);
    To::operand(from, to);
  }

  SK_INLINE std::uint32_t last(int n) const { return own().last + n * (kRegisterOutputs * H * 4); }
  SK_INLINE std::uint32_t first(int f) const { return own().first + f * (H * kRegisterInputs * 4); }
  // c += a Wᵀ, of the first layer's piece f and of a layer between
  SK_INLINE void through_first(const Fragment& a, int f, Columns& c) const {
    Operand left;
    To::operand(a, left);
    const std::uint32_t weights =
        first(f) + weight_place<kRegisterInputs>(part() * kMine * 16 + lane() / 4 * 2, lane() % 4);
#pragma unroll
    for (int i = 0; i < 2 * kMine; ++i) {
      Pair b[2];
      row_pairs((weights ^ 64 * (i % 2)) + i / 2 * (16 * kRegisterInputs * 4), b);
      multiply(c[i], left, b);
    }
  }
  SK_INLINE std::uint32_t between(int l) const {
    return own().between + (kRoomy && own().turns != Turns::kNone ? 0 : l - 1) * (H * H * 4);
  }
  // c += a Wᵀ, or a W, of a layer between hidden ones
  template <bool kPulled>
  SK_INLINE void product_between(const Operands& a, int l, Columns& c) const {
    const int first = part() * kMine;
    const std::uint32_t place_of_lane =
        kPulled ? weight_place<H>(lane() % 4 * 4, 4 * first + lane() / 8) + lane() / 4 % 2 * 8
                : weight_place<H>(16 * first + lane() / 4 * 2, lane() % 4);
    const std::uint32_t weights = between(l) + place_of_lane;
    // A roomy way, 128 wide, takes half of them at a time: of all, ptxas reads more ahead than its registers have room
    // for, and what lives through the product is spilled
    constexpr int kAtOnce = kRoomy && H == 128 ? kDepth / 2 : kDepth;
#pragma unroll 1
    for (int from = 0; from < kDepth; from += kAtOnce) {
#pragma unroll
      for (int k = from; k < from + kAtOnce; ++k) {
        Operand left;
        operand(a, k, left);
#pragma unroll
        for (int j = 0; j < kMine; ++j) {
          Pair b[2][2];
          if constexpr (kPulled) {
            const std::uint32_t at = (weights ^ 64 * j) + k * (16 * H * 4), on = H * 4;
            column_pairs({at, at + on, (at ^ 64) + 2 * on, (at ^ 64) + 3 * on}, b);
          } else {
            const std::uint32_t at = (weights ^ 64 * k) + j * (16 * H * 4);
            row_pairs(at, b[0]), row_pairs(at + H * 4, b[1]);
          }
          multiply(c[2 * j], left, b[0]);
          multiply(c[2 * j + 1], left, b[1]);
        }
      }
    }
  }
  // Of the last layer's pieces from one on, which are number `at` of those that are there
  SK_INLINE void through_last(const Operands& a, int from, int at, Sums (&c)[kOutputPieces]) const {
    const std::uint32_t weights = last(at) + last_place(lane() / 4, lane() % 4);
    constexpr int kAtOnce = kDepth < 4 ? kDepth : 4;  // of more, nvcc splits a load of 16 bytes, which makes a conflict
#pragma unroll kAtOnce
    for (int k = 0; k < kDepth; ++k) {
      Operand left;
      operand(a, k, left);
#pragma unroll
      for (int n = 0; n < kOutputPieces; ++n) {
        if (!has(4 * (from + n))) continue;
        Pair b[2];
        row_pairs((weights ^ 64 * k) + n * (kRegisterOutputs * H * 4), b);
        multiply(c[n], left, b);
      }
    }
  }

  // c += a W, of the first layer's piece f
  SK_INLINE void pull_first(const Operands& a, int f, Sums (&c)[2]) const {
    const std::uint32_t weights =
        first(f) + weight_place<kRegisterInputs>(lane() % 4 * 4, lane() / 8) + lane() / 4 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Operand left;
      operand(a, k, left);
      Pair b[2][2];
      const std::uint32_t at = weights + k * (16 * kRegisterInputs * 4), next = (at ^ 64) + 128;
      column_pairs({at, at ^ 64, next, next ^ 64}, b);
      multiply(c[0], left, b[0]);
      multiply(c[1], left, b[1]);
    }
  }
  SK_INLINE void pull_last(const Fragment& a, int from, int at, Columns& c) const {
    Operand left;
    To::operand(a, left);
    const std::uint32_t weights =
        last(at) + last_place(lane() % 4 * 2, 4 * part() * kMine + lane() / 8) + lane() / 4 % 2 * 8;
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
#pragma unroll
      for (int n = 0; n < kOutputPieces; ++n) {
        if (!has(4 * (from + n))) continue;
        const std::uint32_t here = (weights ^ 64 * j) + n * (kRegisterOutputs * H * 4);
        const std::uint32_t next = (weights ^ 64 * j ^ 64) + (n * kRegisterOutputs + 1) * (H * 4);
        const uint2 two[2] = {*reinterpret_cast<const uint2*>(shared + here),
                              *reinterpret_cast<const uint2*>(shared + next)};
        Pair b[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) b[0].set(i, two[i].x), b[1].set(i, two[i].y);
        To::multiply(c[2 * j], left, n, b[0]);
        To::multiply(c[2 * j + 1], left, n, b[1]);
      }
    }
  }
};

}  // namespace sk::cuda
