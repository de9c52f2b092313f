// Values and tangents of outputs beside their targets: residuals, and their slopes.
#pragma once

#include "projected.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterCompared : RegisterProjected<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterProjected<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::Base, Base::has, Base::kCouples, Base::kD1, Base::kD2, Base::kOutputPieces, Base::kOutputs;
  using Base::kOwed, Base::kY, Base::output_of, Base::part, Base::row_of, Base::sample_weight, Base::step;
  using Base::targets_at, Base::valid, Base::y;

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
      const Target& target = step().target[Term::kValue];
      const int first = output_of(4 * n), O = target.kind == TargetKind::kNone ? 0 : step().O;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const float* row = static_cast<const float*>(target.data.data) + row_of(half) * target.data.stride[0];
        const float4 t = four_of(row, target.data.stride[1], first, kRegisterOutputs, valid(half) ? O : 0);
        const int e = 4 * n + 2 * half;
        float4 a = make_float4(y(kY, e), y(kY, e + 1), 0.0f, 0.0f);
        if (has(e + 4)) a.z = y(kY, e + 4), a.w = y(kY, e + 5);
        f(half, Compared{a, t, Base::output_weights(half, first, O), sample_weight(Term::kValue, half)});
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
        f(half, Compared{a, t, w, sample_weight(Term::kFirst, half)});
      }
    }
  }

  // Residuals of a tangent of pieces of outputs from one on, and their adjoints
  SK_INLINE void tangent_residuals(int p, int from, const Sums (&sums)[kOutputPieces], float (&back)[kOutputs],
                                   float (&rho)[2]) {
    float slopes[kOutputs];
    compared_tangents(p, from, sums, [&](int half, const Compared& of) { put_slopes(Term::kFirst, half, of, slopes); });
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
};

}  // namespace sk::cuda
