// A tile from start to end: values, tangents from directions or gradients, and the way back.
#pragma once

#include "directions.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterStep : RegisterDirections<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterDirections<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::add_bias, Base::add_last_bias, Base::all, Base::bias_sums, Base::bring_together, Base::clear,
      Base::cotangent;
  using Base::Base;
  using Base::cotangents, Base::direction, Base::first_row, Base::gradient_residuals, Base::prepare_cotangents;
  using Base::couples, Base::kCouples, Base::measure, Base::measuring, Base::sample_weight;
  using Base::each_piece, Base::each_two, Base::gradients_by_pieces, Base::has, Base::input_pieces, Base::kOutputPieces,
      Base::kOutputs, Base::piece;
  using Base::group, Base::hand_on, Base::last_bias_sums, Base::output_pieces, Base::hidden, Base::kRoomy, Base::kWide,
      Base::load_own, Base::load_q;
  using Base::kD1, Base::kD2, Base::kOwed, Base::kRows, Base::kY;
  using Base::kHalves, Base::kParts, Base::kept_at, Base::load_kept, Base::load_weights, Base::meet, Base::mine;
  using Base::output_of, Base::own;
  using Base::part, Base::prepare_tangents, Base::projected_residuals, Base::pull, Base::pull_first, Base::row_of;
  using Base::projected_by_pieces, Base::source_from, Base::top;
  using Base::seed, Base::shared, Base::source_at, Base::step, Base::store_inputs, Base::store_q, Base::sum, Base::sums;
  using Base::targets_at, Base::through, Base::through_last, Base::valid, Base::y;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::Source,
      typename Base::To;
  static constexpr Term kValue_ = Term::kValue, kFirst_ = Term::kFirst;
  static constexpr bool kSecond = Base::kOrder == 2;

  SK_INLINE void begin() const {
    load_weights();
    if constexpr (!kRoomy) {
      for (int i = threadIdx.x; step().gradients && i < hidden() * H; i += kThreads) bias_sums(1)[i] = 0.0f;
    }
    for (int i = threadIdx.x; i < kGroups * kRegisterOutputs * output_pieces(); i += kThreads)
      last_bias_sums(0)[i] = 0.0f;
    if constexpr (kRoomy) Base::clear_gradients();
    for (int term = 0; lane() == 0 && term < Base::kTerms; ++term) sums()[term] = 0.0;
    if (threadIdx.x == 0) store_seed(step().directions, seed());
    __syncthreads();
  }

  SK_INLINE void run(std::int64_t tile) {
    first_row = tile * kRows + 16 * group();
    float rho[2][2] = {};  // of each term, of both rows of a lane
    if constexpr (kCouples) {
#pragma unroll
      for (int i = 0; i < 4; ++i) Base::rho_at(Term(i / 2), i % 2) = 0.0f;
    }
    Source x;
    load_x(x);
    values_forward(x);
    bool owed = false;
    // where the loss couples a sample's numbers all of them are measured before the first has a slope
    measuring = couples(kFirst_);
    if (measuring) Base::clear_sums();
#pragma unroll 1
    for (int i = 0; i < step().rounds; ++i) {
      if (step().from == From::kDirections) {
        if (prepares(i)) prepare_tangents(i);
        by_tangent(i, owed, rho[kFirst_]);
      } else {
        if (cotangents() && prepares(i)) prepare_cotangents(i);
        by_gradient(i, owed, rho[kFirst_]);
      }
      owed = step().gradients && step().factor[kFirst_] != 0.0f && !measuring;
      if (measuring && i + 1 == step().rounds) {
        Base::finish_sums(kFirst_);
        measuring = false;
        if (owes_gradients()) i = -1;
      }
    }
    value_residual(owed, rho[kValue_]);
    if constexpr (kCouples) {
#pragma unroll
      for (int i = 0; i < 4; ++i) rho[i / 2][i % 2] = Base::rho_at(Term(i / 2), i % 2);
    }
    leave(rho);
  }

  // What a tile leaves of the terms
  SK_INLINE void leave(float (&rho)[Base::kTerms][2]) const {
    if (step().per_sample) {
      store_losses(rho);
    } else {
#pragma unroll
      for (int term = 0; term < Base::kTerms; ++term) {
        float of = rho[term][0] + rho[term][1];
        for (int apart = 16; apart; apart /= 2) of += __shfl_xor_sync(~0u, of, apart);
        if (lane() == 0) sums()[term] += of;
      }
    }
    if (!step().gradients) meet();
  }

  // Whether a batch of directions begins; those that were measured are there yet if all are in one
  SK_INLINE bool prepares(int i) const {
    return i % own().batch == 0 && (measuring || !couples(kFirst_) || step().P > own().batch);
  }

  // Of this warp's samples, each by itself
  SK_INLINE void store_losses(float (&rho)[Base::kTerms][2]) const {
#pragma unroll
    for (int i = 0; i < 2 * Base::kTerms; ++i) {
      float& of = rho[i / 2][i % 2];
      for (int apart = 2; apart; apart /= 2) of += __shfl_xor_sync(~0u, of, apart);
    }
    if constexpr (kParts > 1) {
      // each warp has added directions or pieces of its own
      if ((kWide ? step().from != From::kDirections : step().from == From::kOutputs) && step().P) {
        meet();
#pragma unroll
        for (int half = 0; half < 2; ++half) mine()[lane() + 32 * half] = rho[kFirst_][half];
        meet();
#pragma unroll
        for (int i = 0; part() == 0 && i < 2 * kParts - 2; ++i) {
          rho[kFirst_][i % 2] += mine()[Base::own_floats() * (i / 2 + 1) + lane() + 32 * (i % 2)];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (part() != 0 || lane() % 4 != 0 || !valid(half)) continue;
      float terms[Base::kTerms];
#pragma unroll
      for (int term = 0; term < Base::kTerms; ++term) terms[term] = float(step().share[term]) * rho[term][half];
      store_loss(step(), row_of(half), terms);
    }
  }

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

  SK_INLINE void put_slopes(Term term, int half, const Compared& of, float (&to)[kOutputs]) const {
    if constexpr (kCouples) {
      const float4 slopes = Base::slopes_of(term, half, of, part() == 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float &upper = to[i / 2 * 4 + i % 2], &lower = to[i / 2 * 4 + 2 + i % 2];
        upper = half ? upper : (&slopes.x)[i], lower = (&slopes.x)[i];
      }
    }
  }
  // f(half, of) of what is compared of both rows of a lane, of its outputs of pieces n and the next
  template <class F>
  SK_INLINE void compared_values(int n, F f) {
    if constexpr (kCouples) {
      const Target& target = step().target[kValue_];
      const int first = output_of(4 * n), O = target.kind == TargetKind::kNone ? 0 : step().O;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const float* row = static_cast<const float*>(target.data.data) + row_of(half) * target.data.stride[0];
        const float4 t = four_of(row, target.data.stride[1], first, kRegisterOutputs, valid(half) ? O : 0);
        const int e = 4 * n + 2 * half;
        float4 a = make_float4(y(kY, e), y(kY, e + 1), 0.0f, 0.0f);
        if (has(e + 4)) a.z = y(kY, e + 4), a.w = y(kY, e + 5);
        f(half, Compared{a, t, Base::output_weights(half, first, O), sample_weight(kValue_, half)});
      }
    }
  }
  template <class F>
  SK_INLINE void compared_tangents(int p, int n, const Sums (&sums)[kOutputPieces], F f) {
    if constexpr (kCouples) {
      const int first = output_of(4 * n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 a, t;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int e = 2 * half + i % 2;
          (&a.x)[i] = (&t.x)[i] = 0.0f;
          if (has(4 * (n + i / 2)))
            (&a.x)[i] = y(kD1, 4 * (n + i / 2) + e) * sums[i / 2][e], (&t.x)[i] = (&targets_at(p, n + i / 2).x)[e];
        }
        const float4 w = product(Base::output_weights(half, first, step().O),
                                 Base::derivative_weights(p, half, first, kRegisterOutputs, step().O));
        f(half, Compared{a, t, w, sample_weight(kFirst_, half)});
      }
    }
  }

  SK_INLINE void value_residual(bool owed, float (&rho)[2]) {
    const Target& target = step().target[Term::kValue];
    typename Base::Top top;
    top.from = 0, top.to = output_pieces();
    float back[kOutputs];
    if (couples(kValue_)) {
      Base::clear_sums();
      each_two(0, output_pieces(), [&](int n) {
        if (n / 2 % kParts == part()) compared_values(n, [&](int half, const Compared& of) { measure(half, of); });
      });
      Base::finish_sums(kValue_);
    }
    each_two(0, output_pieces(), [&](int n) {
      float slopes[kOutputs];
      compared_values(n, [&](int half, const Compared& of) { put_slopes(kValue_, half, of, slopes); });
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

  // ---- A tangent from a direction ----

  // Residuals of a tangent of pieces of outputs from one on, and their adjoints
  SK_INLINE void tangent_residuals(int p, int from, const Sums (&sums)[kOutputPieces], float (&back)[kOutputs],
                                   float (&rho)[2]) {
    float slopes[kOutputs];
    compared_tangents(p, from, sums, [&](int half, const Compared& of) { put_slopes(kFirst_, half, of, slopes); });
#pragma unroll
    for (int n = 0; n < kOutputPieces; ++n) {
      const Sums& z_dot = sums[n];
      const float4 target = has(4 * (from + n)) ? targets_at(p, from + n) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 4 * (from + n) + i, o = output_of(e);
        back[4 * n + i] = 0.0f;
        if (!has(e)) continue;
        float of = 0.0f;
        if constexpr (kCouples) {
          of = slopes[4 * n + i];
        } else if (valid(i / 2) && o < step().O) {
          const float weight = output_weight(step(), o) * derivative_weight(step(), p, row_of(i / 2), o);
          const float r = y(kD1, e) * z_dot[i] - (&target.x)[i];
          of = slope(step(), Term::kFirst, row_of(i / 2), r, weight, rho[i / 2], part() == 0);
        }
        back[4 * n + i] = y(kD1, e) * of;
        y(kOwed, e) += y(kD2, e) * z_dot[i] * of;
      }
    }
  }

  SK_INLINE void by_tangent(int p, bool owed, float (&rho)[2]) {
    Source source;
    source_from(source_at(p), source);
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(own().right, l + 1, a, [&](int j, int k, Fragment& made) {
          const auto s = slopes(curve, l + 1, j, k);
          float of[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) of[i] = s.first(i) * sum(c, j, i);
          To::pack(of, made);
        });
      });
    }
    typename Base::Top top;
    top.from = 0, top.to = output_pieces();
    float back[kOutputs];
    if constexpr (kRoomy) {
      Base::template each_output<false>(a, 0, output_pieces(), [&](int from, const Sums(&sums)[kOutputPieces]) {
        if (measuring) {
          if (from / 2 % kParts == part())
            compared_tangents(p, from, sums, [&](int half, const Compared& of) { measure(half, of); });
          return;
        }
        tangent_residuals(p, from, sums, back, rho);
        if (owes_gradients()) top_of(back, from, top.made);
      });
    } else {
      Sums sums[kOutputPieces] = {};
      through_last(a, 0, 0, sums);
      tangent_residuals(p, 0, sums, back, rho);
    }
    if (!owes_gradients() || measuring) return meet();
    if constexpr (!kRoomy) top_of(back, 0, top.made);
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(own().left, l, a, [&](int j, int k, Fragment& made) {
          const auto s = slopes(curve, l, j, k);
          float h_dot[8], of[8], q[8] = {};
          Fragment from;
          load_own(from, own().right, l, j, k);
          To::unpack(from, h_dot);
          if (owed) load_q(l, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            q[i] = fmaf(s.ratio(i) * h_dot[i], sum(c, j, i), q[i]);
            of[i] = s.first(i) * sum(c, j, i);
          }
          store_q(l, j, q);
          To::pack(of, made);
        });
      });
    }
    if (step().dgiven) store_gradient(a, step().dgiven + p * step().N * step().W, step().W);
    __syncthreads();
    bring_together(source_at(p), own().right, top, false);
    __syncthreads();
  }

  // ---- The gradient of output i, or of what cotangent i makes of them, and its adjoint as a tangent along it ----

  SK_INLINE void by_gradient(int i, bool owed, float (&rho)[2]) {
    // of one output all others have nothing
    const bool every = !kRoomy || cotangents();
    typename Base::Top top;
    top.from = every ? 0 : i / (2 * kRegisterOutputs) * 2;
    top.to = every ? output_pieces() : min(top.from + 2, output_pieces());
    each_two(top.from, top.to, [&](int n) {
      float back[kOutputs];
#pragma unroll
      for (int e = 0; e < kOutputs; ++e) {
        back[e] = has(4 * n + e) && output_of(4 * n + e) == i ? y(kD1, 4 * n + e) : 0.0f;
      }
      if (cotangents()) {
        cotangent(i, n, back);
#pragma unroll
        for (int e = 0; e < kOutputs; ++e) {
          if (has(4 * n + e)) back[e] *= y(kD1, 4 * n + e);
        }
      }
      top_of(back, n, top.made);
    });
    Operands a;
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(own().left, l, a, [&](int j, int k, Fragment& made) {
          const auto s = slopes(curve, l, j, k);
          float of[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) of[i] = s.first(i) * sum(c, j, i);
          To::pack(of, made);
        });
      });
    }
    Source source;
    source.array = own().source;
    if constexpr (kWide) {
      if (cotangents()) {
        gradients_by_pieces(i, a, rho);
      } else {
        projected_by_pieces(i, a, rho);
      }
      meet();
      if (!owes_gradients() || measuring) return;
    } else {
      Sums pulled[2] = {};
      pull_first(a, 0, pulled);
      float g_bar[2][4];
      if (cotangents()) {
        gradient_residuals(i, 0, pulled, g_bar, rho, part() == 0);
        meet();  // before others write to what this warp has read
      } else {
        projected_residuals(i, pulled, g_bar, rho);
      }
      if (!owes_gradients()) return;
      To::pack_inputs(g_bar, source.made);
      if (part() == 0) store_inputs(own().source, source.made);
    }
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(own().right, l + 1, a, [&](int j, int k, Fragment& made) {
          const auto s = slopes(curve, l + 1, j, k);
          float delta[8], of[8], q[8] = {};
          Fragment from;
          load_own(from, own().left, l + 1, j, k);
          To::unpack(from, delta);
          if (owed) load_q(l + 1, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            q[i] = fmaf(s.ratio(i) * delta[i], sum(c, j, i), q[i]);
            of[i] = s.first(i) * sum(c, j, i);
          }
          store_q(l + 1, j, q);
          To::pack(of, made);
        });
      });
    }
    Base::template each_output<false>(a, top.from, top.to, [&](int from, Sums(&z_dot)[kOutputPieces]) {
      if (step().dgiven && part() == 0) {
#pragma unroll
        for (int n = 0; n < kOutputPieces; ++n) store_cotangent_gradient(i, from + n, z_dot[n]);
      }
#pragma unroll
      for (int e = 0; e < kOutputs; ++e) {
        if (has(4 * from + e)) z_dot[e / 4][e % 4] *= y(kD2, 4 * from + e);
      }
      if (cotangents()) {
        float u[kOutputs];
        cotangent(i, from, u);
#pragma unroll
        for (int e = 0; e < kOutputs; ++e) {
          if (has(4 * from + e)) y(kOwed, 4 * from + e) += z_dot[e / 4][e % 4] * u[e];
        }
      } else {
#pragma unroll
        for (int e = 0; e < kOutputs; ++e) {
          const bool is = output_of(4 * from + e) == i;
          if (has(4 * from + e)) y(kOwed, 4 * from + e) += is ? z_dot[e / 4][e % 4] : 0.0f;
        }
      }
    });
    __syncthreads();
    bring_together(own().source, own().right, top, false);
    __syncthreads();
  }

  // Of piece n of the outputs
  SK_INLINE void store_cotangent_gradient(int p, int n, const Sums& z_dot) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = output_of(4 * n + e);
      if (!valid(e / 2) || o >= step().O) continue;
      const std::int64_t row = p * step().N + row_of(e / 2);
      step().dgiven[row * step().O + o] = step().common * y(kD1, 4 * n + e) * z_dot[e];
    }
  }
};

}  // namespace sk::cuda
