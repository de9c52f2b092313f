// Outputs' gradients along directions: residuals, and what their slopes make of the gradients' adjoints.
#pragma once

#include "directions.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterProjected : RegisterDirections<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterDirections<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::Base, Base::all_inputs, Base::couples, Base::direction, Base::group, Base::input_pieces;
  using Base::kCouples, Base::kParts, Base::kRoomy, Base::measure, Base::measuring, Base::meet, Base::mine;
  using Base::mine_at, Base::of_block, Base::own, Base::own_floats, Base::own_of, Base::own_row, Base::part;
  using Base::piece, Base::pull_first, Base::row_of, Base::sample_weight, Base::shared, Base::slopes_of, Base::step;
  using Base::store_direction, Base::valid;
  using typename Base::Operands, typename Base::To;

  // The slope of a residual along direction p of one of this lane's rows: `r` without a projected target
  SK_INLINE float projected_slope(int o, int p, int half, float r, float& rho) const {
    const Target& target = step().target[Term::kFirst];
    if (!valid(half)) return 0.0f;
    if (target.kind != TargetKind::kDense) r -= number(target.data, p, row_of(half), o);
    const float weight = output_weight(step(), o) * derivative_weight(step(), p, row_of(half), o);
    return slope(step(), Term::kFirst, row_of(half), r, weight, rho, lane() % 4 == 0);
  }
  // The same of a loss that couples a sample's numbers, of a and t along the direction, in one of the four lanes of a
  // row; nothing yet while the sums are made
  SK_INLINE float coupled_slope(int o, int p, int half, float a, float t) const {
    const Target& target = step().target[Term::kFirst];
    Compared of{{a, 0.0f, 0.0f, 0.0f}, {t, 0.0f, 0.0f, 0.0f}, {}, sample_weight(Term::kFirst, half)};
    if (lane() % 4 || !valid(half)) return 0.0f;
    if (target.kind != TargetKind::kDense) of.t.x = number(target.data, p, row_of(half), o);
    of.w = make_float4(output_weight(step(), o) * derivative_weight(step(), p, row_of(half), o), 0.0f, 0.0f, 0.0f);
    if (!measuring) return slopes_of(Term::kFirst, half, of, true).x;
    measure(half, of);
    return 0.0f;
  }
  // Of a dense target's gradient of output o, along the direction that this warp has, before it is scaled: this lane's
  // part of the sum
  SK_INLINE float target_along(int o, int half) const {
    const Target& target = step().target[Term::kFirst];
    float t = 0.0f;
#pragma unroll 1
    for (int f = 0; f < input_pieces(); ++f) {
      const float4 v = mine_at(half, f);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = f * kRegisterInputs + lane() % 4 * 4 + i;
        if ((&v.x)[i] != 0.0f && d < step().W && valid(half))
          t = fmaf(number(target.data, row_of(half), o, d), (&v.x)[i], t);
      }
    }
    return t;
  }
  // Four columns of the gradient less those of a dense target
  SK_INLINE void less_target(int o, int half, int column, float (&g)[4]) const {
    const Target& target = step().target[Term::kFirst];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (target.kind == TargetKind::kDense && valid(half) && column + i < step().W)
        g[i] -= number(target.data, row_of(half), o, column + i);
    }
  }

  // Of the gradient along each direction, and its adjoint; warps that share rows share directions
  SK_INLINE void projected_residuals(int o, const Sums (&pulled)[2], float (&g_bar)[2][4], float (&rho)[2]) const {
    const Target& target = step().target[Term::kFirst];
    const bool dense = target.kind == TargetKind::kDense;
    const int column = lane() % 4 * 4;
    float g[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        g[half][i] = To::input_of(pulled, half, i), g_bar[half][i] = 0.0f;
        if (dense && valid(half) && column + i < step().W)
          g[half][i] -= number(target.data, row_of(half), o, column + i);
      }
    }
#pragma unroll 1
    for (int p = part(); p < step().P; p += kParts) {
      float v[2][4];
      direction(p, step().W, v);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float r = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (v[half][i] != 0.0f) r = fmaf(g[half][i], v[half][i], r);  // of a basis all but one are 0
        }
        r += __shfl_xor_sync(~0u, r, 1);
        r += __shfl_xor_sync(~0u, r, 2);
        if (valid(half) && !dense) r -= number(target.data, p, row_of(half), o);
        float of = 0.0f;
        if (valid(half)) {
          const float weight = output_weight(step(), o) * derivative_weight(step(), p, row_of(half), o);
          of = slope(step(), Term::kFirst, row_of(half), r, weight, rho[half], lane() % 4 == 0);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) g_bar[half][i] = fmaf(of, v[half][i], g_bar[half][i]);
      }
    }
    if constexpr (kParts > 1) {
      float4* to = reinterpret_cast<float4*>(mine()) + lane();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[32 * half] = make_float4(g_bar[half][0], g_bar[half][1], g_bar[half][2], g_bar[half][3]);
      }
      meet();
      const float4* from =
          reinterpret_cast<const float4*>(shared + own().own) + own_floats() / 4 * kParts * group() + lane();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 of = from[32 * half];
#pragma unroll
        for (int i = 1; i < kParts; ++i) {
          const float4 more = from[own_floats() / 4 * i + 32 * half];
          of = make_float4(of.x + more.x, of.y + more.y, of.z + more.z, of.w + more.w);
        }
        g_bar[half][0] = of.x, g_bar[half][1] = of.y, g_bar[half][2] = of.z, g_bar[half][3] = of.w;
      }
    }
  }

  // The same of all pieces. Warps that share rows share directions, whose numbers are too many for registers: each puts
  // one where the others find it, with its slope in a place that rows have to spare; then each adds up its own pieces
  // of the adjoint. A piece of the gradient, too, is pulled by one of them.
  SK_INLINE void projected_by_pieces(int o, const Operands& a, float (&rho)[2]) const {
    constexpr int kOfWarp = kRoomy ? 1 : kMostInputPieces / kParts;
    const int column = lane() % 4 * 4, count = input_pieces();
    const bool dense = step().target[Term::kFirst].kind == TargetKind::kDense;
    float4* gradient = reinterpret_cast<float4*>(of_block() + own().pulled) + group() * count * 64 + lane();
    float4* adjoint = gradient + kGroups * count * 64;  // of a roomy way, as it comes to be
    Base::each_piece([&](int f, int at) {
      Sums pulled[2] = {};
      pull_first(a, at, pulled);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float g[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) g[i] = To::input_of(pulled, half, i);
        if (!couples(Term::kFirst)) less_target(o, half, f * kRegisterInputs + column, g);
        gradient[(2 * f + half) * 32] = make_float4(g[0], g[1], g[2], g[3]);
      }
    });
    meet();
    float g_bar[kOfWarp][2][4] = {};
    const auto slope_at = [&](float* own, int half) -> float& {
      return own[(lane() / 4 + 8 * half) * own_row() + count * kRegisterInputs];
    };
    // Of piece f of direction i of those that share rows
    const auto add = [&](int i, int f, float (&to)[2][4]) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float of = slope_at(own_of(i), half);
        const int row = lane() / 4 + 8 * half;
        const float4 v = *reinterpret_cast<const float4*>(own_of(i) + row * own_row() + f * kRegisterInputs + column);
        to[half][0] = fmaf(of, v.x, to[half][0]), to[half][1] = fmaf(of, v.y, to[half][1]);
        to[half][2] = fmaf(of, v.z, to[half][2]), to[half][3] = fmaf(of, v.w, to[half][3]);
      }
    };
#pragma unroll 1
    for (int from = 0; from < step().P; from += kParts) {
      const int p = from + part();
      if (p < step().P) {
        float factor[2];
        all_inputs(p, factor);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float r = 0.0f;
#pragma unroll 1
          for (int f = 0; f < count; ++f) {
            const float4 g = gradient[(2 * f + half) * 32], v = mine_at(half, f);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if ((&v.x)[i] != 0.0f) r = fmaf((&g.x)[i], (&v.x)[i], r);  // of a basis all but one are 0
            }
          }
          r += __shfl_xor_sync(~0u, r, 1);
          r += __shfl_xor_sync(~0u, r, 2);
          float of = 0.0f;
          if constexpr (kCouples) {
            float t = dense && couples(Term::kFirst) ? target_along(o, half) : 0.0f;
            t += __shfl_xor_sync(~0u, t, 1);
            t += __shfl_xor_sync(~0u, t, 2);
            of = factor[half] * coupled_slope(o, p, half, factor[half] * r, factor[half] * t);
          } else {
            of = factor[half] * projected_slope(o, p, half, factor[half] * r, rho[half]);
          }
          if (lane() % 4 == 0) slope_at(mine(), half) = of;
        }
      }
      if (measuring) continue;
      meet();
      const int many = min(kParts, step().P - from);
      if constexpr (kRoomy) {
#pragma unroll 1
        for (int f = part(); f < count; f += kParts) {
          float of[2][4] = {};
#pragma unroll
          for (int half = 0; from && half < 2; ++half) {
            const float4 four = adjoint[(2 * f + half) * 32];
            of[half][0] = four.x, of[half][1] = four.y, of[half][2] = four.z, of[half][3] = four.w;
          }
#pragma unroll 1
          for (int i = 0; i < many; ++i) add(i, f, of);
          if (from + kParts >= step().P) {
            store_direction(of, piece(own().source, f));
            continue;
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            adjoint[(2 * f + half) * 32] = make_float4(of[half][0], of[half][1], of[half][2], of[half][3]);
          }
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < many; ++i) {
#pragma unroll
          for (int j = 0; j < kOfWarp; ++j) {
            const int f = part() + j * kParts;
            if (f < count) add(i, f, g_bar[j]);
          }
        }
      }
      meet();
    }
#pragma unroll
    for (int j = 0; !kRoomy && j < kOfWarp; ++j) {
      const int f = part() + j * kParts;
      if (f < count) store_direction(g_bar[j], piece(own().source, f));
    }
  }
};

}  // namespace sk::cuda
