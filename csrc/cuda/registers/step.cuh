// A tile from start to end: after the values tangents from directions or gradients, and the way back of all.
#pragma once

#include "values.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterStep : RegisterValues<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterValues<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::Base, Base::bias_sums, Base::bring_together, Base::by_curve, Base::clear, Base::cotangent;
  using Base::cotangents, Base::couples, Base::each_two, Base::gradient_residuals;
  using Base::gradients_by_pieces, Base::group, Base::hand_on, Base::has, Base::hidden, Base::kCouples, Base::kD1;
  using Base::kD2, Base::kOutputPieces, Base::kOutputs, Base::kOwed, Base::kParts, Base::kRoomy, Base::kRows;
  using Base::kWide, Base::last_bias_sums, Base::load_own, Base::load_q, Base::load_weights, Base::load_x;
  using Base::measure, Base::measuring, Base::meet, Base::mine, Base::output_of, Base::output_pieces;
  using Base::owes_gradients, Base::own, Base::part, Base::prepare_cotangents, Base::prepare_tangents;
  using Base::projected_by_pieces, Base::projected_residuals, Base::pull, Base::pull_first, Base::row_of;
  using Base::seed, Base::slopes, Base::source_at, Base::source_from, Base::step, Base::store_gradient;
  using Base::store_inputs, Base::store_q, Base::sum, Base::sums, Base::tangent_residuals, Base::through;
  using Base::through_last, Base::top, Base::top_of, Base::valid, Base::value_residual, Base::values_forward;
  using Base::y;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::Source,
      typename Base::To;
  static constexpr Term kValue_ = Term::kValue, kFirst_ = Term::kFirst;

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

  SK_INLINE void run() {
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

  // ---- A tangent from a direction ----

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
