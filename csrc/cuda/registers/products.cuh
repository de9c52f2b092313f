// Products with the weights, which a block has in shared memory, and what becomes of them.
#pragma once

#include <type_traits>

#include "float_products.cuh"
#include "half_products.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups>
using ProductsOf = std::conditional_t<operand_bytes(kPrecision) == 2, HalfProducts<kPrecision, H, kGroups>,
                                      FloatProducts<kPrecision, H, kGroups>>;

template <Precision kPrecision, int H, int kGroups>
struct RegisterProducts : ProductsOf<kPrecision, H, kGroups> {
  using Base = ProductsOf<kPrecision, H, kGroups>;
  using Base::Base;
  using Base::hidden, Base::meet, Base::own, Base::part, Base::pull_last, Base::shared, Base::step, Base::store;
  using Base::kMine, Base::kNumbers, Base::kParts, Base::through_first;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::To;

  // ---- Once for a block ----

  SK_INLINE void load_weights() const {
    const Arguments& a = step();
    for (int l = 0; l < a.L; ++l) {
      const LayerArguments& layer = a.layer[l];
      const bool is_first = l == 0, is_last = l == hidden();
      const int rows = is_last ? kRegisterOutputs : H, half = (is_first ? kRegisterInputs : H) / 2;
      unsigned char* to = shared + (is_first  ? own().first
                                    : is_last ? own().last
                                              : own().between + (l - 1) * H * H * To::kBytes);
#pragma unroll 4
      for (int i = threadIdx.x; i < rows * half; i += kThreads) {
        const int row = i / half, k = i % half * 2;
        const int column = is_first ? To::input_column(k) : k;
        float of[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          of[e] = row < layer.out && column + e < layer.in ? number(layer.weight, row, column + e) : 0.0f;
        }
        Base::put(to, is_first, is_last, row, k, of);
      }
      float* bias = reinterpret_cast<float*>(shared + own().biases) + l * H;
      for (int i = threadIdx.x; i < H; i += kThreads) {
        bias[i] = layer.bias.data && i < layer.out ? number(layer.bias, i) : 0.0f;
      }
    }
  }

  // ---- Products ----

  static SK_INLINE void clear(Columns& c) {
#pragma unroll
    for (int j = 0; j < 2 * kMine; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
  }

  SK_INLINE void through(int l, const Fragment& source, const Operands& a, Columns& c) const {
    if (l == 0) {
      through_first(source, c);
    } else {
      Base::template product_between<false>(a, l, c);
    }
  }
  // The adjoint of what layer l, from 1, is given; of the last one it is in `top`
  SK_INLINE void pull(int l, const Fragment& top, const Operands& a, Columns& c) const {
    clear(c);
    if (l == hidden()) {
      pull_last(top, c);
    } else {
      Base::template product_between<true>(a, l, c);
    }
  }

  // Stores the fragments that f gives, of columns 16 j of a warp's, and makes operands of them
  template <class F>
  SK_INLINE void hand_on(std::uint32_t array, Operands& a, F f) const {
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      Fragment made;
      f(j, part() * kMine + j, made);
      store(array, part() * kMine + j, made);
      if constexpr (kParts == 1) {
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) a.made[j][i] = made[i];
      }
    }
    a.array = array;
    meet();
  }
};

}  // namespace sk::cuda
