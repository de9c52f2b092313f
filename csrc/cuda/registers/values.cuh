// Values forward, their residuals, and the way back of values, with what derivatives owe them.
#pragma once

#include "compared.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterValues : RegisterCompared<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterCompared<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::Base, Base::add_bias, Base::add_last_bias, Base::bring_together, Base::clear, Base::compared_values;
  using Base::couples, Base::each_piece, Base::each_two, Base::group, Base::hand_on, Base::has, Base::hidden;
  using Base::input_pieces, Base::kCouples, Base::kD1, Base::kD2, Base::kept_at, Base::kHalves, Base::kOutputPieces;
  using Base::kOutputs, Base::kOwed, Base::kParts, Base::kRoomy, Base::kWide, Base::kY, Base::load_kept;
  using Base::load_own, Base::load_q, Base::measure, Base::meet, Base::output_of, Base::output_pieces, Base::own;
  using Base::part, Base::piece, Base::pull, Base::pull_first, Base::put_slopes, Base::row_of, Base::shared;
  using Base::step, Base::store_inputs, Base::sum, Base::sums, Base::through, Base::top, Base::valid, Base::y;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::Source,
      typename Base::To;
  static constexpr bool kSecond = Base::kOrder == 2;

  SK_INLINE void load_x(Source& to) const {
    if constexpr (kWide) {
#pragma unroll 1
      for (int f = part(); f < input_pieces(); f += kParts) {
        load_piece(f, to.made);
        store_inputs(piece(own().x, f), to.made);
      }
      to.array = own().x;
      meet();
    } else {
      load_piece(0, to.made);
      if (part() == 0) store_inputs(own().x, to.made);
    }
  }
  SK_INLINE void load_piece(int f, Fragment& to) const {
    float of[2][4];
    const int column = f * kRegisterInputs + lane() % 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = valid(half) && column + i < step().D;
        of[half][i] = there ? number(step().x, row_of(half), column + i) : 0.0f;
      }
    }
    To::pack_inputs(of, to);
  }

  // f(the curve of layer l's activation), l from 0
  template <class F>
  SK_INLINE void by_curve(int l, F f) const {
    if constexpr (kSecond) {
      f(FirstCurve{});
    } else if (is_tanh(l)) {
      f(TanhCurve{});
    } else if (!keeps(l)) {
      f(AnyCurve<typename To::Real>{Base::curve(l)});
    } else {
      f(KeptCurve{});
    }
  }
  SK_INLINE bool keeps(int l) const { return (kRoomy || H <= kWidestKept) && !Base::curve(l).known; }
  SK_INLINE bool is_tanh(int l) const { return Base::layer(l).activation.row == kActTanhRow; }

  // Of layer l, from 1, columns 16 k, which are 16 j of this warp's
  template <class C>
  SK_INLINE Slopes<C> slopes(const C& curve, int l, int j, int k) const {
    if constexpr (kSecond) {
      Slopes<C> of;
      Base::load_eight(kept_at(l, j, 0), Base::kKeptInHalves, of.of_first);
      return of;
    } else if constexpr (std::is_same_v<C, KeptCurve>) {
      Slopes<C> of;
      load_kept(l, j, of.of_first, of.of_ratio);
      return of;
    } else {
      Slopes<C> of{curve};
      Fragment from;
      load_own(from, own().h, l, j, k);
      To::unpack(from, of.h);
      return of;
    }
  }

  // Four numbers of order 2, number i of eight of a lane
  SK_INLINE void keep_derivatives(const Activated<true>& s, int l, int j, int i) const {
    const auto keep = [&](int which, const float (&of)[4]) {
      if constexpr (Base::kKeptInHalves) {
        To::store_four(kept_at(l, j, which) + 8 * i, of);
      } else {
        *reinterpret_cast<float4*>(kept_at(l, j, which) + 512 * i) = make_float4(of[0], of[1], of[2], of[3]);
      }
    };
    keep(0, s.d1), keep(1, s.d2), keep(2, s.d3);
  }

  // ---- Values ----

  SK_INLINE void values_forward(const Source& x) {
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      add_bias(c, l);
      through(l, x, a, c);
      const Function& of = Base::layer(l).activation;
      const bool tanh = To::kBytes == 2 && !kSecond && is_tanh(l), keep = own().kept && (kSecond || keeps(l));
      hand_on(own().h, l + 1, a, [&](int j, int, Fragment& made) {
        float value[8];
        if (tanh) {
#pragma unroll
          for (int i = 0; i < 8; ++i) value[i] = tanh_approx(sum(c, j, i));
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float4 z = make_float4(c[2 * j + i][0], c[2 * j + i][1], c[2 * j + i][2], c[2 * j + i][3]);
            const auto s = activated<typename To::Real, kSecond>(of.row, of.parameters[0], of.parameters[1], z);
#pragma unroll
            for (int e = 0; e < 4; ++e) value[4 * i + e] = s.value[e];
            if constexpr (kSecond) {
              if (keep) keep_derivatives(s, l + 1, j, i);
            } else if (keep) {
              const int next = i * (kHalves ? 8 : 512);
              keep_four<To>(make_float4(s.d1[0], s.d1[1], s.d1[2], s.d1[3]),
                            make_float4(s.d2[0], s.d2[1], s.d2[2], s.d2[3]), kept_at(l + 1, j, 0) + next,
                            kept_at(l + 1, j, 1) + next);
            }
          }
        }
        To::pack(value, made);
      });
    }
    const Function& of = Base::layer(hidden()).activation;
    Base::template each_output<true>(a, 0, output_pieces(), [&](int from, const Sums(&sums)[kOutputPieces]) {
#pragma unroll
      for (int n = 0; n < kOutputPieces; ++n) {
        if (!has(4 * (from + n))) continue;
        const Sums& z = sums[n];
        const auto s = activated<typename To::Real, kSecond>(of.row, of.parameters[0], of.parameters[1],
                                                             make_float4(z[0], z[1], z[2], z[3]));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int e = 4 * (from + n) + i;
          y(kY, e) = s.value[i], y(kD1, e) = s.d1[i], y(kD2, e) = s.d2[i], y(kOwed, e) = 0.0f;
          if constexpr (kSecond) y(Base::kD3, e) = s.d3[i];
        }
      }
    });
  }

  // Adjoints of the outputs, of pieces n and the next, as an operand of 16 columns, which of pieces that are not there
  // are 0
  SK_INLINE void top_of(const float (&of)[kOutputs], int n, Fragment& to) const {
    To::pack_outputs(of, to);
    if (part() != 0) return;
    if constexpr (kRoomy) {
      store_inputs(Base::top_at(n), to);
      return;
    }
    To::template store_outputs<0>(shared, top(0), 16 * group(), to);
    if constexpr (kWide) {
      if (has(4)) To::template store_outputs<1>(shared, top(1), 16 * group(), to);
    }
  }

  SK_INLINE void value_residual(bool owed, float (&rho)[2]) {
    const Target& target = step().target[Term::kValue];
    typename Base::Top top;
    top.from = 0, top.to = output_pieces();
    float back[kOutputs];
    if (couples(Term::kValue)) {
      Base::clear_sums();
      each_two(0, output_pieces(), [&](int n) {
        if (n / 2 % kParts == part()) compared_values(n, [&](int half, const Compared& of) { measure(half, of); });
      });
      Base::finish_sums(Term::kValue);
    }
    each_two(0, output_pieces(), [&](int n) {
      float slopes[kOutputs];
      compared_values(n, [&](int half, const Compared& of) { put_slopes(Term::kValue, half, of, slopes); });
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        const int e = 4 * n + i, o = output_of(e), half = i / 2 % 2;
        back[i] = 0.0f;
        if (!has(e)) continue;
        if constexpr (kCouples) {
          back[i] = y(kD1, e) * slopes[i];
        } else if (valid(half) && o < step().O && target.kind != TargetKind::kNone) {
          const float r = y(kY, e) - number(target.data, row_of(half), o);
          back[i] = y(kD1, e) *
                    slope(step(), Term::kValue, row_of(half), r, output_weight(step(), o), rho[half], part() == 0);
        }
        back[i] += y(kOwed, e);
      }
      if constexpr (kRoomy) {
        if (!step().gradients) return;
        top_of(back, n, top.made);
        add_last_bias(back, n);
      }
    });
    if (!step().gradients) return;
    if constexpr (!kRoomy) {
      top_of(back, 0, top.made);
      add_last_bias(back, 0);
    }
    Operands a;
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(own().left, l, a, [&](int j, int k, Fragment& made) {
          const auto s = slopes(curve, l, j, k);
          float q[8] = {};
          if (owed) load_q(l, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) q[i] = fmaf(s.first(i), sum(c, j, i), q[i]);
          To::pack(q, made);
        });
      });
    }
    if (step().dx) store_gradient(a, step().dx, step().D);
    __syncthreads();
    bring_together(own().x, own().h, top, true);
    __syncthreads();
  }

  // Of x, or of a direction: [N, n]
  SK_INLINE void store_gradient(const Operands& a, float* to, int n) const {
    each_piece([&a, to, n, this](int f, int at) {
      Sums of[2] = {};
      pull_first(a, at, of);
      if (!kWide && part() != 0) return;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int half = i / 2 % 2, column = i / 4 * 2 + i % 2, d = f * kRegisterInputs + lane() % 4 * 4 + column;
        if (valid(half) && d < n) to[row_of(half) * n + d] = step().common * To::input_of(of, half, column);
      }
    });
  }

  // Whether derivatives have a way back; also of weight 0, where the gradient of given vectors is 0
  SK_INLINE bool owes_gradients() const {
    return step().gradients && (step().factor[Term::kFirst] != 0.0f || step().dgiven);
  }
};

}  // namespace sk::cuda
