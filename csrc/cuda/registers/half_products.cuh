// Products of 16-bit numbers with the weights.
#pragma once

#include "block.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, Room kRoom>
struct HalfProducts : RegisterBlock<kPrecision, H, kGroups, kRoom> {
  using Block = RegisterBlock<kPrecision, H, kGroups, kRoom>;
  using Block::Block;
  using Block::fragment, Block::has, Block::own, Block::part, Block::shared;
  using Block::kDepth, Block::kMine, Block::kOutputPieces, Block::kRoomy;
  using typename Block::Columns, typename Block::Fragment, typename Block::Operands, typename Block::To;

  // Weights of a row from k on, two or four
  template <int n>
  static SK_INLINE void put(unsigned char* to, bool is_first, bool, int row, int k, const float (&of)[n]) {
    const std::uint32_t at = (is_first ? place<kRegisterInputs>(row, k / 8) : place<H>(row, k / 8)) + k % 8 * 2;
    if constexpr (n == 4) {
      *reinterpret_cast<uint2*>(to + at) = make_uint2(To::two(of[0], of[1]), To::two(of[2], of[3]));
    } else {
      *reinterpret_cast<std::uint32_t*>(to + at) = To::two(of[0], of[1]);
    }
  }

  SK_INLINE std::uint32_t last(int n) const { return own().last + n * (kRegisterOutputs * H * 2); }
  SK_INLINE std::uint32_t first(int f) const { return own().first + f * (H * kRegisterInputs * 2); }

  // Transposed, or as they lie
  template <bool kTransposed>
  SK_INLINE void matrices(Fragment& to, std::uint32_t at) const {
    if constexpr (kTransposed) {
      ldmatrix_transposed(to, shared + at);
    } else {
      ldmatrix(to, shared + at);
    }
  }

  SK_INLINE void add_bias(Columns& c, int l) const {
#pragma unroll
    for (int j = 0; j < 2 * kMine; ++j) {
      const float2 two = Block::template biases<float2>(l, part() * kMine * 16 + 8 * j + lane() % 4 * 2);
      c[j][0] += two.x, c[j][1] += two.y, c[j][2] += two.x, c[j][3] += two.y;
    }
  }

  // c += a Wᵀ, of the first layer's piece f and of a layer between
  SK_INLINE void through_first(const Fragment& a, int f, Columns& c) const {
    const int row = part() * kMine * 16 + lane() % 8 + lane() / 16 * 8;
    const std::uint32_t weights = first(f) + place<kRegisterInputs>(row, lane() / 8 % 2);
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      Fragment b;
      matrices<false>(b, weights + j * (16 * kRegisterInputs * 2));
      To::multiply(c[2 * j], a, b[0], b[1]);
      To::multiply(c[2 * j + 1], a, b[2], b[3]);
    }
  }
  SK_INLINE std::uint32_t between(int l) const {
    return own().between + (kRoomy && own().turns != Turns::kNone ? 0 : l - 1) * (H * H * 2);
  }
  // c += a Wᵀ, or a W, of a layer between hidden ones
  template <bool kPulled>
  SK_INLINE void product_between(const Operands& a, int l, Columns& c) const {
    const int first = part() * kMine * 2;
    const std::uint32_t place_of_lane = kPulled ? place<H>(lane() % 16, first + lane() / 16)
                                                : place<H>(8 * first + lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
    const std::uint32_t weights = between(l) + place_of_lane;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Fragment left;
      fragment(a, k, left);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        const int across = kPulled ? j : k, down = kPulled ? k : j;
        Fragment b;
        matrices<kPulled>(b, (weights ^ 32 * across) + down * (16 * H * 2));
        To::multiply(c[2 * j], left, b[0], b[1]);
        To::multiply(c[2 * j + 1], left, b[2], b[3]);
      }
    }
  }
  // Of the last layer's pieces from one on, which are number `at` of those that are there
  SK_INLINE void through_last(const Operands& a, int from, int at, Sums (&c)[kOutputPieces]) const {
    const std::uint32_t weights = last(at) + place<H>(lane() % 8, lane() / 8 % (kDepth == 1 ? 2 : 4));
#pragma unroll
    for (int k = 0; k < kDepth; k += 2) {
      Fragment b[kOutputPieces];
#pragma unroll
      for (int n = 0; n < kOutputPieces; ++n) {
        if (has(4 * (from + n))) matrices<false>(b[n], (weights ^ 32 * k) + n * (kRegisterOutputs * H * 2));
      }
#pragma unroll
      for (int i = 0; i < (kDepth == 1 ? 1 : 2); ++i) {
        Fragment left;
        fragment(a, k + i, left);
#pragma unroll
        for (int n = 0; n < kOutputPieces; ++n) {
          if (has(4 * (from + n))) To::multiply(c[n], left, b[n][2 * i], b[n][2 * i + 1]);
        }
      }
    }
  }

  // c += a W, of the first layer's piece f
  SK_INLINE void pull_first(const Operands& a, int f, Sums (&c)[2]) const {
    const std::uint32_t weights = first(f) + place<kRegisterInputs>(lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Fragment left, b;
      fragment(a, k, left);
      matrices<true>(b, weights + k * (16 * kRegisterInputs * 2));
      To::multiply(c[0], left, b[0], b[1]);
      To::multiply(c[1], left, b[2], b[3]);
    }
  }
  SK_INLINE void pull_last(const Fragment& a, int from, int at, Columns& c) const {
    constexpr int kAtOnce = kMine == 1 ? 2 : 4;
    const std::uint32_t weights = last(at) + place<H>(lane() % 8, part() * kMine * 2 + lane() / 8 % kAtOnce);
#pragma unroll
    for (int j = 0; j < 2 * kMine; j += kAtOnce) {
      Fragment b;
      matrices<true>(b, weights ^ 16 * j);
      Fragment more = {};
      if (kOutputPieces > 1 && has(4 * (from + 1))) matrices<true>(more, (weights ^ 16 * j) + kRegisterOutputs * H * 2);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) To::multiply(c[j + i], a, b[i], more[i]);
    }
  }
};

}  // namespace sk::cuda
