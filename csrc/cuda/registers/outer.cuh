// Gradients of weights: outer products over a block's rows, in sums that stay in registers to its end.
#pragma once

#include "products.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterOuter : RegisterProducts<kPrecision, H, kGroups, kRoom> {
  using Products = RegisterProducts<kPrecision, H, kGroups, kRoom>;
  using Products::bias_sums, Products::group, Products::has, Products::hidden, Products::hidden_array;
  using Products::input_pieces, Products::kOutputPieces, Products::kOutputs, Products::own;
  using Products::kRoomy, Products::kRows, Products::kWide, Products::slot, Products::output_pieces, Products::part,
      Products::piece, Products::shared, Products::step, Products::top;
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
  // Of the block's life; a roomy way has them in its slot
  Sums of_first[kRoomy ? 1 : kFirst] = {}, of_last[kRoomy ? 1 : kLast] = {};
  Pieces of_between[kRoomy ? 1 : kBetween] = {};

  // ---- Sums over the block's rows ----

  // Of the last layer, in shared memory for each 16 rows: in registers they would live as long as the block
  SK_INLINE float* last_bias_sums(int group) const {
    const int before = kRegisterOutputs * output_pieces() * group;
    if constexpr (kRoomy) {
      return slot() + own().bias_sums / 4 + before;
    } else {
      return reinterpret_cast<float*>(shared + own().sums) + 4 * kWarps + before;
    }
  }
  SK_INLINE void add_last_bias(const float (&of)[kOutputs], int from) const {
    if (part() != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * kOutputPieces; ++i) {
      if (!has(4 * from + 2 * i)) continue;
      float sum = of[i / 2 * 4 + i % 2] + of[i / 2 * 4 + i % 2 + 2];
      for (int apart = 16; apart >= 4; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
      if (lane() < 4) last_bias_sums(group())[(from + i / 2) * kRegisterOutputs + 2 * lane() + i % 2] += sum;
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
  SK_INLINE void bring_together(std::uint32_t source, std::uint32_t below, const typename Products::Top& from,
                                bool biased) {
    if constexpr (kRoomy) {
      bring_to_slot<1>(source, below, from, biased);
    } else {
      each_first([&](auto i, int m, int n) { add_first(of_first[i], source, own().left, m, n, biased); });
      unrolled<kBetween>([&](auto l) {
        if (l + 1 >= hidden() || down() >= H / 16) return;
        add_between(of_between[l], hidden_array(own().left, l + 2), hidden_array(below, l + 1), l + 2, biased);
      });
      each_last([&](auto i, int m, int n) { add_last(of_last[i], hidden_array(below, hidden()), top(n), m); });
    }
  }

  // `left` is the array of layer 1
  SK_INLINE void add_first(Sums& to, std::uint32_t source, std::uint32_t of_layer, int m, int n, bool biased) const {
    Right ones;
    To::ones(ones);
    const std::uint32_t left = of_layer + To::template left_place<H>(m);
    const std::uint32_t right = kWide ? piece(source, n / 2) + To::template right_place<kRegisterInputs>(n % 2)
                                      : source + To::template right_place<kRegisterInputs>(n);
    Sums bias = {};
    summed(to, [&](Sums& sums) {
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
  }
  // Of layer l, from 1, and the one below
  SK_INLINE void add_between(Pieces& to, std::uint32_t of_layer, std::uint32_t below, int l, bool biased) const {
    Right ones;
    To::ones(ones);
    const int m = down();
    const std::uint32_t left = of_layer + To::template left_place<H>(m);
    const std::uint32_t right = below + To::template right_place<H>(across());
    Sums bias = {};
    summed<kOfRows>(to, [&](Pieces& sums) {
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
    if (biased && warp() % kAcross < kDown) add_bias_sums(l, m + warp() % kAcross, bias);
  }
  SK_INLINE void add_last(Sums& to, std::uint32_t of_layer, std::uint32_t outputs, int m) const {
    const std::uint32_t left = of_layer + To::template left_place<H>(m);
    const std::uint32_t right = outputs + To::template right_place<kRegisterOutputs>(0);
    summed(to, [&](Sums& sums) {
#pragma unroll 2
      for (int row = 0; row < kRows; row += To::kTogether) {
        Left a;
        To::template left_of<H>(shared, left, 0, row, a);
        To::template each_right<kRegisterOutputs, 1>(shared, right, row,
                                                     [&](auto, const Right& b) { To::add(sums, a, b); });
      }
    });
  }
  // Where a warp's pieces of a layer between begin
  static SK_INLINE int down() { return warp() / kAcross * kDown; }
  static SK_INLINE int across() { return warp() % kAcross * kRight; }

  // ---- A roomy way's sums, which lie in its slot: each number is one lane's ----

  SK_INLINE void clear_gradients() const {
    float4* to = reinterpret_cast<float4*>(slot());
    for (int i = threadIdx.x; i < step().layout.gradient_floats / 4; i += kThreads) {
      to[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }
  // Layer l of an array, from 1, comes to where tensor cores read it
  SK_INLINE void stage(std::uint32_t array, int l) const {
#pragma unroll
    for (int j = 0; j < Products::kMine; ++j) {
      typename Products::Fragment of;
      const int k = part() * Products::kMine + j;
      Products::load_own(of, array, l, j, k);
      Products::store(Products::operands_at(l), k, of);
    }
  }
  // f(m, n) of pieces [16, 8] that a warp has of [H, 8] of each n
  template <class F>
  static SK_INLINE void each_of_columns(int from, int to, F f) {
#pragma unroll 1
    for (int i = warp(); i < H / 16 * (to - from); i += kWarps) f(i % (H / 16), from + i / (H / 16));
  }
  static constexpr int kOfOutputs = Products::kRows * kRegisterOutputs * To::kBytes;  // bytes of a piece
  // Pieces of outputs' adjoints, or of inputs, likewise, of the slot
  SK_INLINE void stage_outputs(int begin, int end, std::uint32_t apart) const {
#pragma unroll 1
    for (int n = begin + 2 * part(); n < end; n += 2 * Products::kParts) {
      typename Products::Fragment of;
      Products::load_inputs(of, Products::top_at(n) + apart);
      To::template store_outputs<0>(shared, own().staged + (n - begin) * kOfOutputs, 16 * group(), of);
      if (n + 1 < end)
        To::template store_outputs<1>(shared, own().staged + (n + 1 - begin) * kOfOutputs, 16 * group(), of);
    }
  }
  SK_INLINE void stage_inputs(std::uint32_t source, int begin, int end) const {
#pragma unroll 1
    for (int f = begin + part(); f < end; f += Products::kParts) {
      typename Products::Fragment of;
      Products::load_inputs(of, piece(source, f));
      To::template store<kRegisterInputs>(shared, piece(own().staged, f - begin), 16 * group(), 0, of);
    }
  }
  // Of arrays of so many streams, which are `apart`; only those of the first have inputs
  template <int kStreams>
  SK_INLINE void bring_to_slot(std::uint32_t source, std::uint32_t below, const typename Products::Top& top,
                               bool biased) const {
#pragma unroll 1
    for (int i = 0; i < kStreams; ++i) {
      const std::uint32_t apart = kStreams == 1 ? 0 : i * own().apart;
      if (i) __syncthreads();
      stage(below + apart, hidden());
#pragma unroll 1
      for (int begin = top.from; begin < top.to; begin += own().output_window) {
        const int end = min(top.to, begin + own().output_window);
        if (begin > top.from) __syncthreads();
        stage_outputs(begin, end, apart);
        __syncthreads();
        each_of_columns(begin, end, [&](int m, int n) {
          Sums sums = {};
          add_last(sums, Products::operands_at(hidden()), own().staged + (n - begin) * kOfOutputs, m);
          put_last<true>(sums, m, n);
        });
      }
    }
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      const std::uint32_t left = Products::operands_at(l);
      if (l > 1) {
        Pieces sums = {};
#pragma unroll 1
        for (int i = 0; i < kStreams; ++i) {
          const std::uint32_t apart = kStreams == 1 ? 0 : i * own().apart;
          __syncthreads();
          stage(own().left + apart, l);
          stage(below + apart, l - 1);
          __syncthreads();
          if (down() < H / 16) add_between(sums, left, Products::operands_at(l - 1), l, biased);
        }
        if (down() < H / 16) put_between<true>(sums, l - 1);
        continue;
      }
      __syncthreads();
      stage(own().left, l);
      __syncthreads();
#pragma unroll 1
      for (int begin = 0; begin < input_pieces(); begin += own().input_window) {
        const int end = min(input_pieces(), begin + own().input_window);
        if (begin) __syncthreads();
        stage_inputs(source, begin, end);
        __syncthreads();
        each_of_columns(2 * begin, 2 * end, [&](int m, int n) {
          Sums sums = {};
          add_first(sums, piece(own().staged, -begin), left, m, n, biased);
          put_first<true>(sums, m, n);
        });
      }
    }
  }

  // ---- What a block leaves ----

  SK_INLINE void end() {
    const Arguments& a = step();
    float* slot = this->slot();
    const double* sums = reinterpret_cast<const double*>(shared + own().sums);
    __syncthreads();
    if (threadIdx.x < Products::kTerms * kSums) {
      double of = 0.0;
      for (int i = 0; threadIdx.x % kSums == 0 && i < kWarps; ++i) {
        of += sums[Products::kTerms * i + threadIdx.x / kSums];
      }
      reinterpret_cast<double*>(slot + a.layout.gradient_floats)[threadIdx.x] = of;
    }
    if (!a.gradients) return;
    if constexpr (!kRoomy) {
      for (int i = threadIdx.x; i < hidden() * H; i += kThreads) {
        slot[a.layer[i / H].bias_gradient + i % H] = bias_sums(1)[i];
      }
    }
    const int columns = kRegisterOutputs * output_pieces();
    for (int n = threadIdx.x; n < columns; n += kThreads) {
      float of = 0.0f;
      for (int i = 0; i < kGroups; ++i) of += last_bias_sums(i)[n];
      slot[Products::layer(hidden()).bias_gradient + n] = of;
    }
    if constexpr (!kRoomy) {
      each_first([&](auto i, int m, int n) { put_first<false>(of_first[i], m, n); });
      unrolled<kBetween>([&](auto l) {
        if (l + 1 < hidden() && down() < H / 16) put_between<false>(of_between[l], l + 1);
      });
      each_last([&](auto i, int m, int n) { put_last<false>(of_last[i], m, n); });
    }
  }

  // A warp's sums go to the block's slot, or are added to what is there
  template <bool kAdded>
  static SK_INLINE void put(float& to, float of) {
    to = kAdded ? to + of : of;
  }
  template <bool kAdded>
  SK_INLINE void put_first(const Sums& of, int m, int n) const {
    float* to = slot() + Products::layer(0).gradient;
    const int columns = kRegisterInputs * input_pieces();
    unrolled<4>([&](auto e) {
      const int of_piece = To::input_column(To::template sum_column<1>(n % 2, 0, e));
      const int column = n / 2 * kRegisterInputs + of_piece;
      put<kAdded>(to[place_of(To::sum_row(m, e), column, columns)], of[e]);
    });
  }
  template <bool kAdded>
  SK_INLINE void put_between(const Pieces& of, int l) const {  // from 1
    float* to = slot() + Products::layer(l).gradient;
    const int m = down(), n = across();
    unrolled<kDown>([&](auto i) {
      unrolled<kRight>([&](auto j) {
        // so many numbers of the slot are read ahead: of more ptxas spills what lives through this
        if constexpr (kAdded && j % 8 == 0) __syncwarp();
        const Sums& c = of[i][j];
        if constexpr (To::kBytes == 2) {
          float4& four = reinterpret_cast<float4*>(to)[((m + i) * (H / 8) + n + j) * 32 + lane()];
          if constexpr (kAdded) {
            four = make_float4(four.x + c[0], four.y + c[1], four.z + c[2], four.w + c[3]);
          } else {
            four = make_float4(c[0], c[1], c[2], c[3]);
          }
        } else if constexpr (kAdded) {
          // from the first one on it is known how far each is, so that 64 places are not worked out, and kept
          float* first = to + place_of(To::sum_row(m, 0), To::template sum_column<kRight>(n, 0, 0), H);
          unrolled<4>(
              [&](auto e) { put<true>(first[place_of(16 * i + e / 2, j / 4 * 32 + e % 2 * 4 + j % 4, H)], c[e]); });
        } else {
          unrolled<4>([&](auto e) {
            put<false>(to[place_of(To::sum_row(m + i, e), To::template sum_column<kRight>(n, j, e), H)], c[e]);
          });
        }
      });
    });
  }
  template <bool kAdded>
  SK_INLINE void put_last(const Sums& of, int m, int n) const {
    float* to = slot() + Products::layer(hidden()).gradient;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = n * kRegisterOutputs + lane() % 4 * 2 + e % 2;
      put<kAdded>(to[place_of(o, To::sum_row(m, e), H)], of[e]);
    }
  }

  // Of a number of a gradient of n columns, as finish_step reads them
  static SK_INLINE int place_of(int row, int column, int n) {
    return (row / 16 * (n / 8) + column / 8) * 128 + (row % 8 * 4 + column % 8 / 2) * 4 + row / 8 % 2 * 2 + column % 2;
  }
};

}  // namespace sk::cuda
