// Gradients of weights: outer products over a block's rows, in sums that stay in registers to its end.
#pragma once

#include "products.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween>
struct RegisterOuter : RegisterProducts<kPrecision, H, kGroups> {
  using Products = RegisterProducts<kPrecision, H, kGroups>;
  using Products::bias_sums, Products::group, Products::hidden, Products::hidden_array, Products::own, Products::part;
  using Products::Products;
  using Products::shared, Products::step, Products::kRows;
  using typename Products::To;

  // Pieces [16, 8] of a gradient that a warp has: of [H, H] a rectangle
  static constexpr int kDown = H == 128 ? 2 : 1, kRight = H <= 32 ? 1 : H / 16;
  static constexpr int kAcross = H / 8 / kRight;
  static constexpr int kFirst = (H / 8 + kWarps - 1) / kWarps;

  Sums of_first[kFirst] = {}, of_between[kBetween][kDown][kRight] = {}, of_last = {};
  float of_last_bias[2] = {};

  // ---- Sums over the block's rows ----

  // Of 32 rows two operands, rows and columns of an array changed: of columns 16 m, or 8 n
  template <int N>
  static SK_INLINE std::uint32_t left_place(int m) {
    return place<N>(lane() % 8 + lane() / 16 * 8, 2 * m + lane() / 8 % 2);
  }
  template <int N>
  SK_INLINE void left_of(std::uint32_t at, int row, Fragment (&to)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) ldmatrix_transposed(to[i], shared + at + (row + 16 * i) * (N * 2));
  }
  template <int N>
  SK_INLINE void right_of(std::uint32_t at, int row, Fragment& to) const {
    ldmatrix_transposed(to, shared + at + row * (N * 2));
  }
  static SK_INLINE void add(Sums& c, const Fragment (&left)[2], const Fragment& right) {
    To::multiply(c, left[0], right[0], right[1]);
    To::multiply(c, left[1], right[2], right[3]);
  }

  // Of a piece's rows, times ones
  SK_INLINE void add_bias_sums(int l, int m, const Sums& c) const {
    float* to = bias_sums(l) + 16 * m + lane() / 4;
    if (lane() % 4 == 0) to[0] += c[0], to[8] += c[2];
  }

  // gradient of layer l += leftᵀ of what it was given, `source` or the array of the layer below
  SK_INLINE void bring_together(std::uint32_t source, std::uint32_t below, bool biased) {
    const Fragment ones = {To::kOnes, To::kOnes, To::kOnes, To::kOnes};
    unrolled<kFirst>([&](auto i) {
      const int m = (warp() + kWarps * i) / 2, n = warp() % 2;
      if (m >= H / 16) return;
      const std::uint32_t left = own().left + left_place<H>(m), right = source + place<kRegisterInputs>(lane(), n);
      Sums bias = {};
#pragma unroll 2
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[2], b;
        left_of<H>(left, row, a);
        right_of<kRegisterInputs>(right, row, b);
        add(of_first[i], a, b);
        if (biased && n) add(bias, a, ones);
      }
      if (biased && n) add_bias_sums(1, m, bias);
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      const std::uint32_t left = hidden_array(own().left, l + 2) + left_place<H>(m);
      const std::uint32_t right = hidden_array(below, l + 1) + place<H>(lane(), n);
      Sums bias = {};
#pragma unroll 1
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[kDown][2];
        unrolled<kDown>([&](auto i) { left_of<H>(left ^ 32 * i, row, a[i]); });
        unrolled<kRight>([&](auto j) {
          Fragment b;
          right_of<H>(right ^ 16 * j, row, b);
          unrolled<kDown>([&](auto i) { add(of_between[l][i][j], a[i], b); });
        });
        // of the warps side by side the first kDown have a row of pieces each
        unrolled<kDown>([&](auto i) {
          if (biased && warp() % kAcross == i) add(bias, a[i], ones);
        });
      }
      if (biased && warp() % kAcross < kDown) add_bias_sums(l + 2, m + warp() % kAcross, bias);
    });
    if (warp() < H / 16) {  // of the last layer the transposed, [H, 8]
      const std::uint32_t left = hidden_array(below, hidden()) + left_place<H>(warp());
      const std::uint32_t right = own().top + place<kRegisterOutputs>(lane(), 0);
#pragma unroll 2
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[2], b;
        left_of<H>(left, row, a);
        right_of<kRegisterOutputs>(right, row, b);
        add(of_last, a, b);
      }
    }
  }

  // ---- What a block leaves ----

  SK_INLINE void end() {
    const Arguments& a = step();
    float* slot = a.slots + std::int64_t(blockIdx.x) * a.layout.slot_floats;
    const double* sums = reinterpret_cast<const double*>(shared + own().sums);
    float* outputs = reinterpret_cast<float*>(shared + own().sums) + 4 * kWarps;
    if (a.gradients && part() == 0) {  // of the last bias: a sum over rows
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        for (int apart = 16; apart >= 4; apart /= 2) of_last_bias[i] += __shfl_xor_sync(~0u, of_last_bias[i], apart);
        if (lane() < 4) outputs[kRegisterOutputs * group() + 2 * lane() + i] = of_last_bias[i];
      }
    }
    __syncthreads();
    if (threadIdx.x < 2 * kSums) {
      double of = 0.0;
      for (int i = 0; threadIdx.x % kSums == 0 && i < kWarps; ++i) of += sums[2 * i + threadIdx.x / kSums];
      reinterpret_cast<double*>(slot + a.layout.gradient_floats)[threadIdx.x] = of;
    }
    if (!a.gradients) return;
    const LayerArguments &first = a.layer[0], &last = a.layer[hidden()];
    for (int i = threadIdx.x; i < hidden() * H; i += kThreads) {
      slot[a.layer[i / H].bias_gradient + i % H] = bias_sums(1)[i];
    }
    if (threadIdx.x < kRegisterOutputs) {
      float of = 0.0f;
      for (int i = 0; i < kGroups; ++i) of += outputs[kRegisterOutputs * i + threadIdx.x];
      slot[last.bias_gradient + threadIdx.x] = of;
    }
    unrolled<kFirst>([&](auto i) {
      const int m = (warp() + kWarps * i) / 2, n = warp() % 2;
      if (m >= H / 16) return;
      unrolled<4>([&](auto e) {
        const int column = lane() % 4 * 4 + 2 * n + e % 2;
        slot[first.gradient + (2 * m + column / 8) * 128 + (lane() / 4 * 4 + column % 8 / 2) * 4 + e] = of_first[i][e];
      });
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      const LayerArguments& layer = a.layer[l + 1];
      unrolled<kDown>([&](auto i) {
        unrolled<kRight>([&](auto j) {
          const Sums& c = of_between[l][i][j];
          reinterpret_cast<float4*>(slot + layer.gradient)[((m + i) * (H / 8) + n + j) * 32 + lane()] =
              make_float4(c[0], c[1], c[2], c[3]);
        });
      });
    });
    if (warp() < H / 16) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 16 * warp() + lane() / 4 + e / 2 * 8, o = lane() % 4 * 2 + e % 2;
        slot[last.gradient + (column / 8 * 32 + o * 4 + column % 8 / 2) * 4 + column % 2] = of_last[e];
      }
    }
  }
};

}  // namespace sk::cuda
