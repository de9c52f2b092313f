// A tile from start to end: values, tangents from directions or outputs' gradients, and the way back.
#pragma once

#include "curves.cuh"
#include "directions.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween>
struct RegisterStep : RegisterDirections<kPrecision, H, kGroups, kBetween> {
  using Base = RegisterDirections<kPrecision, H, kGroups, kBetween>;
  using Base::add_bias, Base::all, Base::bias_sums, Base::bring_together, Base::clear, Base::direction, Base::first_row;
  using Base::Base;
  using Base::group, Base::hand_on, Base::hidden, Base::hidden_array, Base::load, Base::load_inputs, Base::load_q;
  using Base::kD1, Base::kD2, Base::kOwed, Base::kRows, Base::kY;
  using Base::load_weights, Base::meet, Base::of_last_bias, Base::output_of, Base::own;
  using Base::part, Base::prepare_tangents, Base::projected_residuals, Base::pull, Base::pull_first, Base::row_of;
  using Base::seed, Base::shared, Base::source_at, Base::step, Base::store_inputs, Base::store_q, Base::sum, Base::sums;
  using Base::targets_at, Base::through, Base::through_last, Base::valid, Base::y;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::To;
  static constexpr Term kValue_ = Term::kValue, kFirst_ = Term::kFirst;

  SK_INLINE void begin() const {
    load_weights();
    for (int i = threadIdx.x; step().gradients && i < hidden() * H; i += kThreads) bias_sums(1)[i] = 0.0f;
    if (lane() == 0) sums()[0] = sums()[1] = 0.0;
    if (threadIdx.x == 0) store_seed(step().directions, seed());
    __syncthreads();
  }

  // Rounds of derivatives, and a last one of values, with which goes back what derivatives owe them. All share the code
  // of the way back and of the outer products: instructions that are executed are several times a cache of them.
  SK_INLINE void run(std::int64_t tile) {
    first_row = tile * kRows + 16 * group();
    const bool tangents = step().from == From::kDirections;
    const bool pulled_derivatives = step().gradients && step().factor[kFirst_] != 0.0f;
    float rho[2] = {0.0f, 0.0f};
    {
      Fragment x;
      load_x(x);
      values_forward(x);
    }
#pragma unroll 1
    for (int i = 0; i <= step().rounds; ++i) {
      const bool values = i == step().rounds, owed = i > 0 && pulled_derivatives;
      float back[4];
      if (values) {
        value_residual(back, rho[kValue_]);
      } else if (tangents) {
        if (i % own().batch == 0) prepare_tangents(i);
        tangent_residual(i, back, rho[kFirst_]);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) back[e] = output_of(e) == i ? y(kD1, e) : 0.0f;
      }
      if (values ? !step().gradients : tangents && !pulled_derivatives) {
        if (!values) meet();
        continue;
      }
      Operands a;
      way_back(back, values, tangents, owed, a);
      if (values ? step().dx != nullptr : !tangents) {
        Sums pulled[2] = {};
        pull_first(a, pulled);
        if (values) {
          store_dx(pulled);
        } else {
          Fragment source;
          gradient_residual(i, pulled, source, rho[kFirst_]);
          if (!pulled_derivatives) continue;
          adjoint_forward(i, source, owed);
        }
      }
      __syncthreads();
      bring_together(values ? own().x : tangents ? source_at(i) : own().source, values ? own().h : own().right, values);
      __syncthreads();
    }
#pragma unroll
    for (int term = 0; term < 2; ++term) {
      for (int apart = 16; apart; apart /= 2) rho[term] += __shfl_xor_sync(~0u, rho[term], apart);
      if (lane() == 0) sums()[term] += rho[term];
    }
    if (!step().gradients) meet();
  }

  SK_INLINE void load_x(Fragment& to) const {
    float of[2][4];
    const int column = lane() % 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = valid(half) && column + i < step().D;
        of[half][i] = there ? number(step().x, row_of(half), column + i) : 0.0f;
      }
    }
    To::pack_inputs(of, to);
    if (part() == 0) store_inputs(own().x, to);
  }

  // f(the curve of layer l's activation), l from 0; in float32, where little of a step is elementwise, one code for all
  template <class F>
  SK_INLINE void by_curve(int l, F f) const {
    if (!To::kCut && all.curve[l].tanh) {
      f(TanhCurve{});
    } else {
      f(AnyCurve{all.curve[l]});
    }
  }

  // ---- Values ----

  SK_INLINE void values_forward(const Fragment& x) {
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      add_bias(c, l);
      through(l, x, a, c);
      const Function& of = step().layer[l].activation;
      const bool tanh = To::kBytes == 2 && all.curve[l].tanh;
      hand_on(hidden_array(own().h, l + 1), a, [&](int j, int, Fragment& made) {
        float value[8];
        if (tanh) {
#pragma unroll
          for (int i = 0; i < 8; ++i) value[i] = tanh_approx(sum(c, j, i));
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float4 z = make_float4(c[2 * j + i][0], c[2 * j + i][1], c[2 * j + i][2], c[2 * j + i][3]);
            const Activated s = activated(of.row, of.parameters[0], of.parameters[1], z);
#pragma unroll
            for (int e = 0; e < 4; ++e) value[4 * i + e] = s.value[e];
          }
        }
        To::pack(value, made);
      });
    }
    const float2 bias = *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(shared + own().biases) +
                                                         hidden() * H + lane() % 4 * 2);
    Sums z = {bias.x, bias.y, bias.x, bias.y};
    through_last(a, z);
    const Function& of = step().layer[hidden()].activation;
    const Activated s = activated(of.row, of.parameters[0], of.parameters[1], make_float4(z[0], z[1], z[2], z[3]));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      y(kY, e) = s.value[e], y(kD1, e) = s.d1[e], y(kD2, e) = s.d2[e], y(kOwed, e) = 0.0f;
    }
  }

  SK_INLINE void value_residual(float (&back)[4], float& rho) {
    const Target& target = step().target[Term::kValue];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = output_of(e);
      back[e] = 0.0f;
      if (valid(e / 2) && o < step().O && target.kind != TargetKind::kNone) {
        const float r = y(kY, e) - number(target.data, row_of(e / 2), o);
        back[e] = y(kD1, e) * slope(step(), Term::kValue, row_of(e / 2), r, output_weight(step(), o), rho, part() == 0);
      }
      back[e] += y(kOwed, e);
      of_last_bias[e % 2] += back[e];
    }
  }

  // ---- The way back ----

  // Adjoints of the hidden layers, of those of the outputs, whose operand has 8 columns, the others 0: of values with
  // what derivatives owe them, or of a tangent, which then owes them more; or the gradient of an output.
  SK_INLINE void way_back(const float (&back)[4], bool values, bool tangents, bool owed, Operands& a) {
    Fragment top;
    To::pack_outputs(back, top);
    if (part() == 0) To::store_outputs(shared, own().top, 16 * group(), top);
    const bool owing = tangents && !values;
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(hidden_array(own().left, l), a, [&](int j, int k, Fragment& made) {
          float h[8];
          load_numbers(own().h, l, k, h);
          if (owing) {
            float h_dot[8];
            load_numbers(own().right, l, k, h_dot);
            scale_and_owe(curve, l, j, owed, h_dot, c, h);
          } else {
            float q[8] = {};
            if (values && owed) load_q(l, j, q);
#pragma unroll
            for (int i = 0; i < 8; ++i) h[i] = fmaf(curve.first(h[i]), sum(c, j, i), q[i]);
          }
          To::pack(h, made);
        });
      });
    }
  }
  // Of layer l, from 1
  SK_INLINE void load_numbers(std::uint32_t arrays, int l, int k, float (&to)[8]) const {
    Fragment from;
    load(from, hidden_array(arrays, l), k);
    To::unpack(from, to);
  }
  // What derivatives owe the values of layer l, from 1, by σ'' of one side and sums of the other; and the sums times σ'
  // in the place of h
  template <class C>
  SK_INLINE void scale_and_owe(C curve, int l, int j, bool owed, const float (&side)[8], Columns& c, float (&h)[8]) {
    float q[8] = {};
    if (owed) load_q(l, j, q);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      q[i] = fmaf(curve.ratio(h[i]) * side[i], sum(c, j, i), q[i]);
      h[i] = curve.first(h[i]) * sum(c, j, i);
    }
    store_q(l, j, q);
  }

  SK_INLINE void store_dx(const Sums (&of)[2]) const {
    if (part() != 0) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int half = i / 2 % 2, column = i / 4 * 2 + i % 2, d = lane() % 4 * 4 + column;
      if (valid(half) && d < step().D) {
        step().dx[row_of(half) * step().D + d] = step().common * To::input_of(of, half, column);
      }
    }
  }

  // ---- A tangent from a direction ----

  SK_INLINE void tangent_residual(int p, float (&back)[4], float& rho) {
    Fragment source;
    load_inputs(source, source_at(p));
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(hidden_array(own().right, l + 1), a, [&](int j, int k, Fragment& made) {
          float h[8];
          load_numbers(own().h, l + 1, k, h);
#pragma unroll
          for (int i = 0; i < 8; ++i) h[i] = curve.first(h[i]) * sum(c, j, i);
          To::pack(h, made);
        });
      });
    }
    Sums z_dot = {};
    through_last(a, z_dot);
    const float4 target = targets_at(p);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = output_of(e);
      float of = 0.0f;
      if (valid(e / 2) && o < step().O) {
        const float weight = output_weight(step(), o) * derivative_weight(step(), p, row_of(e / 2), o);
        const float r = y(kD1, e) * z_dot[e] - (&target.x)[e];
        of = slope(step(), Term::kFirst, row_of(e / 2), r, weight, rho, part() == 0);
      }
      back[e] = y(kD1, e) * of;
      y(kOwed, e) += y(kD2, e) * z_dot[e] * of;
    }
  }

  // ---- The gradient of output o, and its adjoint as a tangent along it ----

  SK_INLINE void gradient_residual(int o, const Sums (&pulled)[2], Fragment& source, float& rho) {
    float g_bar[2][4];
    projected_residuals(o, pulled, g_bar, rho);
    To::pack_inputs(g_bar, source);
    if (part() == 0) store_inputs(own().source, source);
  }

  SK_INLINE void adjoint_forward(int o, const Fragment& source, bool owed) {
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(hidden_array(own().right, l + 1), a, [&](int j, int k, Fragment& made) {
          float h[8], delta[8];
          load_numbers(own().h, l + 1, k, h);
          load_numbers(own().left, l + 1, k, delta);
          scale_and_owe(curve, l + 1, j, owed, delta, c, h);
          To::pack(h, made);
        });
      });
    }
    Sums z_dot = {};
    through_last(a, z_dot);
#pragma unroll
    for (int e = 0; e < 4; ++e) y(kOwed, e) += output_of(e) == o ? y(kD2, e) * z_dot[e] : 0.0f;
  }
};

}  // namespace sk::cuda
