// Gradients of weights: outer products over a block's rows, in sums that stay in registers to its end.
#pragma once

#include "products.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, bool kWide>
struct RegisterOuter : RegisterProducts<kPrecision, H, kGroups, kWide> {
  using Products = RegisterProducts<kPrecision, H, kGroups, kWide>;
  using Products::bias_sums, Products::group, Products::has, Products::hidden, Products::hidden_array;
  using Products::input_pieces, Products::kFew, Products::kOutputPieces, Products::kOutputs, Products::own;
  using Products::kRows, Products::output_pieces, Products::part, Products::piece, Products::shared, Products::step,
      Products::top;
  using Products::Products;
  using typename Products::To;
  using Left = typename To::Left;
  using Right = typename To::Right;

  // Pieces [16, 8] of a gradient that a warp has: of [H, H] a rectangle
  static constexpr int kDown = H == 128 ? 2 : 1, kRight = H <= 32 ? 1 : H / 16;
  static constexpr int kAcross = H / 8 / kRight;
  static constexpr int kFirst = (kWide ? H / 16 * 2 * kMostInputPieces : H / 8 + kWarps - 1) / kWarps;
  static constexpr int kLast = (H / 16 * kOutputPieces + kWarps - 1) / kWarps;

  using Pieces = Sums[kDown][kRight];
  Sums of_first[kFirst] = {}, of_last[kLast] = {};
  Pieces of_between[kBetween] = {};

  // ---- Sums over the block's rows ----

  // Of the last layer, in shared memory for each 16 rows: in registers they would live as long as the block
  SK_INLINE float* last_bias_sums(int group) const {
    return reinterpret_cast<float*>(shared + own().sums) + 4 * kWarps + kRegisterOutputs * output_pieces() * group;
  }
  SK_INLINE void add_last_bias(const float (&of)[kOutputs]) const {
    if (part() != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * kOutputPieces; ++i) {
      if (!has(2 * i)) continue;
      float sum = of[i / 2 * 4 + i % 2] + of[i / 2 * 4 + i % 2 + 2];
      for (int apart = 16; apart >= 4; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
      if (lane() < 4) last_bias_sums(group())[i / 2 * kRegisterOutputs + 2 * lane() + i % 2] += sum;
    }
  }

  // Of a piece's rows, times ones
  SK_INLINE void add_bias_sums(int l, int m, const Sums& c) const {
    float* to = bias_sums(l);
    if (lane() % 4 == 0) to[To::sum_row(m, 0)] += c[0], to[To::sum_row(m, 2)] += c[2];
  }

  // f adds a tile's sums to those of the block's life, of float32 by themselves first: tensor cores cut what they add.
  // Where a tile's own sums have no room in registers f does so with those of a few rows, of one piece at a time.
  static constexpr bool kOfRows = To::kCut && H == 128;
  template <bool kAlready = false, class C, class F>
  static SK_INLINE void summed(C& total, F f) {
    if constexpr (To::kCut && !kAlready) {
      C of_tile = {};
      f(of_tile);
#pragma unroll
      for (int i = 0; i < int(sizeof(C) / 4); ++i) {
        reinterpret_cast<float*>(&total)[i] += reinterpret_cast<float*>(&of_tile)[i];
      }
    } else {
      f(total);
    }
  }

  static SK_INLINE void add_to(Sums& total, const Left& left, const Right& right) {
    if constexpr (kOfRows) {
      Sums of_rows;
      To::first(of_rows, left, right);
#pragma unroll
      for (int e = 0; e < 4; ++e) total[e] += of_rows[e];
    } else {
      To::add(total, left, right);
    }
  }

  // f(i, m, n) of each piece i that a warp has of the first layer's gradient, rows 16 m and columns 8 n of it
  template <class F>
  SK_INLINE void each_first(F f) const {
    unrolled<kFirst>([&](auto i) {
      if constexpr (kWide) {
        const int m = (warp() + kWarps * i) % (H / 16), n = (warp() + kWarps * i) / (H / 16);
        if (n < 2 * input_pieces()) f(i, m, n);
      } else {
        const int m = (warp() + kWarps * i) / 2, n = warp() % 2;
        if (m >= H / 16) return;
        f(i, m, n);
      }
    });
  }
  // The same of the last layer's, transposed, [H, 8] of each piece of outputs
  template <class F>
  SK_INLINE void each_last(F f) const {
    if constexpr (kWide) {
      unrolled<kLast>([&](auto i) {
        const int m = (warp() + kWarps * i) % (H / 16), n = (warp() + kWarps * i) / (H / 16);
        if (n < output_pieces()) f(i, m, n);
      });
    } else if (warp() < H / 16) {
      f(Constant<0>{}, warp(), 0);
    }
  }
  static SK_INLINE bool of_bias(int n) { return kWide ? n == 1 : n; }

  // gradient of layer l += leftᵀ of what it was given, `source` or the array of the layer below
  SK_INLINE void bring_together(std::uint32_t source, std::uint32_t below, bool biased) {
    Right ones;
    To::ones(ones);
    each_first([&](auto i, int m, int n) {
      const std::uint32_t left = own().left + To::template left_place<H>(m);
      const std::uint32_t right = kWide ? piece(source, n / 2) + To::template right_place<kRegisterInputs>(n % 2)
                                        : source + To::template right_place<kRegisterInputs>(n);
      Sums bias = {};
      summed(of_first[i], [&](Sums& sums) {
#pragma unroll 2
        for (int row = 0; row < kRows; row += To::kTogether) {
          Left a;
          To::template left_of<H>(shared, left, 0, row, a);
          To::template each_right<kRegisterInputs, 1>(shared, right, row,
                                                      [&](auto, const Right& b) { To::add(sums, a, b); });
          if (biased && of_bias(n)) To::add(bias, a, ones);
        }
      });
      if (biased && of_bias(n)) add_bias_sums(1, m, bias);
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      const std::uint32_t left = hidden_array(own().left, l + 2) + To::template left_place<H>(m);
      const std::uint32_t right = hidden_array(below, l + 1) + To::template right_place<H>(n);
      Sums bias = {};
      summed<kOfRows>(of_between[l], [&](Pieces& sums) {
#pragma unroll 1
        for (int row = 0; row < kRows; row += To::kTogether) {
          Left a[kDown];
          unrolled<kDown>([&](auto i) { To::template left_of<H>(shared, left, i, row, a[i]); });
          To::template each_right<H, kRight>(shared, right, row, [&](auto j, const Right& b) {
            unrolled<kDown>([&](auto i) { add_to(sums[i][j], a[i], b); });
          });
          // of the warps side by side the first kDown have a row of pieces each
          unrolled<kDown>([&](auto i) {
            if (biased && warp() % kAcross == i) To::add(bias, a[i], ones);
          });
        }
      });
      if (biased && warp() % kAcross < kDown) add_bias_sums(l + 2, m + warp() % kAcross, bias);
    });
    each_last([&](auto i, int m, int n) {
      const std::uint32_t left = hidden_array(below, hidden()) + To::template left_place<H>(m);
      const std::uint32_t right = top(n) + To::template right_place<kRegisterOutputs>(0);
      summed(of_last[i], [&](Sums& sums) {
#pragma unroll 2
        for (int row = 0; row < kRows; row += To::kTogether) {
          Left a;
          To::template left_of<H>(shared, left, 0, row, a);
          To::template each_right<kRegisterOutputs, 1>(shared, right, row,
                                                       [&](auto, const Right& b) { To::add(sums, a, b); });
        }
      });
    });
  }

  // ---- What a block leaves ----

  SK_INLINE void end() {
    const Arguments& a = step();
    float* slot = a.slots + std::int64_t(blockIdx.x) * a.layout.slot_floats;
    const double* sums = reinterpret_cast<const double*>(shared + own().sums);
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
    const int columns = kRegisterOutputs * output_pieces();
    if (threadIdx.x < columns) {
      float of = 0.0f;
      for (int i = 0; i < kGroups; ++i) of += last_bias_sums(i)[threadIdx.x];
      slot[last.bias_gradient + threadIdx.x] = of;
    }
    each_first([&](auto i, int m, int n) {
      const int columns = kRegisterInputs * input_pieces();
      unrolled<4>([&](auto e) {
        const int of_piece = To::input_column(To::template sum_column<1>(n % 2, 0, e));
        const int column = n / 2 * kRegisterInputs + of_piece;
        slot[first.gradient + place_of(To::sum_row(m, e), column, columns)] = of_first[i][e];
      });
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      float* to = slot + a.layer[l + 1].gradient;
      unrolled<kDown>([&](auto i) {
        unrolled<kRight>([&](auto j) {
          const Sums& c = of_between[l][i][j];
          if constexpr (To::kBytes == 2) {
            reinterpret_cast<float4*>(to)[((m + i) * (H / 8) + n + j) * 32 + lane()] =
                make_float4(c[0], c[1], c[2], c[3]);
          } else {
            unrolled<4>([&](auto e) {
              to[place_of(To::sum_row(m + i, e), To::template sum_column<kRight>(n, j, e), H)] = c[e];
            });
          }
        });
      });
    });
    each_last([&](auto i, int m, int n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int o = n * kRegisterOutputs + lane() % 4 * 2 + e % 2;
        slot[last.gradient + place_of(o, To::sum_row(m, e), H)] = of_last[i][e];
      }
    });
  }

  // Of a number of a gradient of n columns, as finish_step reads them
  static SK_INLINE int place_of(int row, int column, int n) {
    return (row / 16 * (n / 8) + column / 8) * 128 + (row % 8 * 4 + column % 8 / 2) * 4 + row / 8 % 2 * 2 + column % 2;
  }
};

}  // namespace sk::cuda
