// Products with the weights, which a block has in shared memory, and what becomes of them.
#pragma once

#include <type_traits>

#include "float_products.cuh"
#include "half_products.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, Room kRoom>
using ProductsOf = std::conditional_t<operand_bytes(kPrecision) == 2, HalfProducts<kPrecision, H, kGroups, kRoom>,
                                      FloatProducts<kPrecision, H, kGroups, kRoom>>;

enum Place : int { kFirstLayer, kBetweenLayers, kLastLayer };

// Of a layer the weights [out, in], which `Products` multiply with, by all threads of a block; of the first and the
// last one so many pieces, from one on
template <class Products, Place kPlace>
__device__ __noinline__ void bring_weights(const float* weight, std::int64_t of_row, std::int64_t of_column, int out,
                                           int in, int from, int count, unsigned char* to) {
  constexpr bool kFirst = kPlace == kFirstLayer, kLast = kPlace == kLastLayer;
  constexpr int kRowsOf = kLast ? kRegisterOutputs : Products::H, kColumns = kFirst ? kRegisterInputs : Products::H;
  constexpr int kOfRow = kColumns / 2, kOfPiece = kRowsOf * kOfRow;
#pragma unroll 8
  for (int i = threadIdx.x; i < count * kOfPiece; i += kThreads) {
    const int n = i / kOfPiece, of_piece = i / kOfRow % kRowsOf, k = i % kOfRow * 2;
    const int row = kLast ? (from + n) * kRowsOf + of_piece : of_piece;
    const int column = kFirst ? (from + n) * kColumns + Products::To::input_column(k) : k;
    float of[2] = {0.0f, 0.0f};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (row < out && column + e < in) of[e] = weight[row * of_row + (column + e) * of_column];
    }
    Products::put(to + n * (kRowsOf * kColumns * Products::To::kBytes), kFirst, kLast, of_piece, k, of);
  }
}

template <Precision kPrecision, int H, int kGroups, Room kRoom>
struct RegisterProducts : ProductsOf<kPrecision, H, kGroups, kRoom> {
  using Base = ProductsOf<kPrecision, H, kGroups, kRoom>;
  using Base::Base;
  using Base::hidden, Base::input_pieces, Base::kOutputPieces, Base::load_inputs, Base::meet, Base::own, Base::part,
      Base::piece;
  using Base::kMine, Base::kNumbers, Base::kParts, Base::kRoomy, Base::kWide, Base::output_pieces, Base::pull_last,
      Base::through_first;
  using Base::shared, Base::step, Base::store;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::Source,
      typename Base::To;

  // ---- Once for a block ----

  // Weights of one layer, of the first one's pieces, or of all between hidden ones, as many of a row at a time as
  // kTogether. Each thread has several loads under way: a block's first tile waits for the slowest.
  template <Place kPlace, int kTogether>
  SK_INLINE void load_matrices(int layers, unsigned char* to) const {
    constexpr bool kFirst = kPlace == kFirstLayer, kLast = kPlace == kLastLayer;
    constexpr int kColumns = kFirst ? kRegisterInputs : H, kOfRow = kColumns / kTogether;
    constexpr int kRowsOf = kLast ? kRegisterOutputs : H, kOfMatrix = kRowsOf * kOfRow,
                  kPerThread = (kOfMatrix + kThreads - 1) / kThreads;
    constexpr int kOfNext = kWide ? kRowsOf * kColumns : H * H;  // where l is 0 always that is no matter
    constexpr int kAtOnce = kPlace == kBetweenLayers ? 8 : kPerThread < 8 ? kPerThread : 8;
#pragma unroll 1
    for (int begin = threadIdx.x; begin < layers * kOfMatrix; begin += kAtOnce * kThreads) {
      float of[kAtOnce][kTogether];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = begin + i * kThreads, l = at / kOfMatrix, of_piece = at / kOfRow % kRowsOf;
        const int row = kWide && kLast ? l * kRowsOf + of_piece : of_piece;
        const int k = at % kOfRow * kTogether, column_of_piece = kFirst ? To::input_column(k) : k;
        const int column = kWide && kFirst ? l * kColumns + column_of_piece : column_of_piece;
#pragma unroll
        for (int e = 0; e < kTogether; ++e) of[i][e] = 0.0f;
        if (at >= layers * kOfMatrix) continue;
        const LayerArguments& layer = Base::layer(kFirst ? 0 : kLast ? hidden() : l + 1);
        if (row >= layer.out) continue;
        if constexpr (kTogether == 4) {
          if (column >= layer.in) continue;
          const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(layer.weight.data) +
                                                               row * layer.weight.stride[0] + column);
          of[i][0] = four.x, of[i][1] = four.y, of[i][2] = four.z, of[i][3] = four.w;
        } else {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (column + e < layer.in) of[i][e] = number(layer.weight, row, column + e);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = begin + i * kThreads, l = at / kOfMatrix, row = at / kOfRow % kRowsOf;
        if (at >= layers * kOfMatrix) continue;
        Base::put(to + l * (kOfNext * To::kBytes), kFirst, kLast, row, at % kOfRow * kTogether, of[i]);
      }
    }
  }

  // Whether rows of weights can be read by fours
  static SK_INLINE bool by_fours(const LayerArguments& layer) {
    return layer.in % 4 == 0 && layer.weight.stride[1] == 1 && layer.weight.stride[0] % 4 == 0 &&
           reinterpret_cast<std::uintptr_t>(layer.weight.data) % 16 == 0;
  }

  SK_INLINE void load_weights() const {
    if constexpr (kRoomy) {
      if (own().turns == Turns::kAll) return;
      bring<kFirstLayer>(0, 0, input_pieces(), own().first);
      bring<kLastLayer>(hidden(), 0, own().output_window, own().last);
#pragma unroll 1
      for (int l = 1; own().turns == Turns::kNone && l < hidden(); ++l)
        bring<kBetweenLayers>(l, 0, 1, Base::between(l));
      return;
    }
    const Arguments& a = step();
    bool wide = true;
    for (int l = 1; l < a.L; ++l) wide = wide && by_fours(a.layer[l]);
    float* biases = reinterpret_cast<float*>(shared + own().biases);
#pragma unroll 4
    for (int i = threadIdx.x; i < a.L * H; i += kThreads) {
      const LayerArguments& layer = a.layer[i / H];
      biases[i] = layer.bias.data && i % H < layer.out ? number(layer.bias, i % H) : 0.0f;
    }
    load_matrices<kFirstLayer, 2>(input_pieces(), shared + own().first);
    if (wide) {
      load_matrices<kLastLayer, 4>(output_pieces(), shared + own().last);
      load_matrices<kBetweenLayers, 4>(hidden() - 1, shared + own().between);
    } else {
      load_matrices<kLastLayer, 2>(output_pieces(), shared + own().last);
      load_matrices<kBetweenLayers, 2>(hidden() - 1, shared + own().between);
    }
  }

  template <Place kPlace>
  SK_INLINE void bring(int l, int from, int count, std::uint32_t to) const {
    const LayerArguments& layer = Base::layer(l);
    bring_weights<Base, kPlace>(static_cast<const float*>(layer.weight.data), layer.weight.stride[0],
                                layer.weight.stride[1], layer.out, layer.in, from, count, shared + to);
  }

  // ---- Products ----

  // Before a product of layer l: a roomy way has its weights, or none of those that share rows is at the last product's
  // operands, which the next ones may take the place of
  SK_INLINE void ready(int l) const {
    if constexpr (kRoomy) {
      if (l == 0 || l == hidden()) {
        meet();
      } else if (own().turns != Turns::kNone) {
        __syncthreads();
        bring<kBetweenLayers>(l, 0, 1, own().between);
        __syncthreads();
      }
    }
  }
  // f(begin, end, at) of pieces of the first layer, or of the last one, whose weights are there, the first one's as
  // number `at`: of all, or of as many as come by turns
  template <Place kPlace, class F>
  SK_INLINE void each_window(int from, int to, F f) const {
    if constexpr (kRoomy) {
      const int window = kPlace == kFirstLayer ? own().input_window : own().output_window;
      const bool by_turns = own().turns == Turns::kAll;
#pragma unroll 1
      for (int begin = from; begin < to; begin += window) {
        const int end = min(to, begin + window);
        if (by_turns) {
          __syncthreads();
          // of outputs two pieces go together
          const int count = kPlace == kFirstLayer ? end - begin : (end - begin + 1) / 2 * 2;
          bring<kPlace>(kPlace == kFirstLayer ? 0 : hidden(), begin, count, own().between);
          __syncthreads();
        }
        f(begin, end, by_turns ? 0 : begin);
      }
    } else {
      f(0, to, 0);
    }
  }
  // f(f, at) of pieces of inputs, each by one of the warps that share rows, or the only one by all of them
  template <class F>
  SK_INLINE void each_piece(F f) const {
    if constexpr (kWide) {
      each_window<kFirstLayer>(0, input_pieces(), [&](int begin, int end, int at) {
#pragma unroll 1
        for (int i = begin + part(); i < end; i += kParts) f(i, i - begin + at);
      });
    } else {
      f(0, 0);
    }
  }
  // f(n, what the last layer makes of two pieces of outputs from n on)
  template <bool kBiased, class F>
  SK_INLINE void each_output(const Operands& a, int from, int to, F f) const {
    each_window<kLastLayer>(from, to, [&](int begin, int end, int at) {
      Base::each_two(begin, end, [&](int n) {
        Sums sums[kOutputPieces] = {};
        if constexpr (kBiased) {
#pragma unroll
          for (int i = 0; i < kOutputPieces; ++i) {
            const float2 bias = Base::template biases<float2>(hidden(), (n + i) * kRegisterOutputs + lane() % 4 * 2);
            sums[i][0] = sums[i][2] = bias.x, sums[i][1] = sums[i][3] = bias.y;
          }
        }
        Base::through_last(a, n, n - begin + at, sums);
        f(n, sums);
      });
    });
  }

  static SK_INLINE void clear(Columns& c) {
#pragma unroll
    for (int j = 0; j < 2 * kMine; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
  }

  SK_INLINE void source_from(std::uint32_t array, Source& to) const {
    if constexpr (!kWide) load_inputs(to.made, array);
    to.array = array;
  }
  SK_INLINE void through(int l, const Source& source, const Operands& a, Columns& c) const {
    ready(l);
    if (l == 0) {
      if constexpr (kWide) {
        each_window<kFirstLayer>(0, input_pieces(), [&](int begin, int end, int at) {
#pragma unroll 1
          for (int f = begin; f < end; ++f) {
            Fragment made;
            load_inputs(made, piece(source.array, f));
            through_first(made, f - begin + at, c);
          }
        });
      } else {
        through_first(source.made, 0, c);
      }
    } else {
      Base::template product_between<false>(a, l, c);
    }
  }
  // Adjoints of pieces of outputs from one to another, which a roomy way has in its slot
  struct Top {
    Fragment made;
    int from, to;
  };
  SK_INLINE std::uint32_t top_at(int n) const { return own().top + n * (Base::kRows * kRegisterOutputs * To::kBytes); }
  // The adjoint of what layer l, from 1, is given; of the last one it is in `top`
  SK_INLINE void pull(int l, const Top& top, const Operands& a, Columns& c) const {
    ready(l);
    clear(c);
    if (l == hidden()) {
      if constexpr (kRoomy) {
        each_window<kLastLayer>(top.from, top.to, [&](int begin, int end, int at) {
          Base::each_two(begin, end, [&](int n) {
            Fragment made;
            load_inputs(made, top_at(n));
            pull_last(made, n, n - begin + at, c);
          });
        });
      } else {
        pull_last(top.made, 0, 0, c);
      }
    } else {
      Base::template product_between<true>(a, l, c);
    }
  }

  // Stores the fragments that f gives, of columns 16 j of a warp's, of layer l of an array, and makes operands of them
  template <class F>
  SK_INLINE void hand_on(std::uint32_t array, int l, Operands& a, F f) const {
    const std::uint32_t to = kRoomy ? Base::operands_at(l) : Base::hidden_array(array, l);
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      Fragment made;
      f(j, part() * kMine + j, made);
      store(to, part() * kMine + j, made);
      if constexpr (kRoomy) Base::store_in_slot(array, l, j, made);
      if constexpr (kParts == 1) {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) a.made[j][i] = made[i];
      }
    }
    a.array = to;
    meet();
  }
};

}  // namespace sk::cuda
