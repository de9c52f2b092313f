// Directions and cotangents, given or drawn, and what is compared along them: the target's tangents, and gradients.
#pragma once

#include "../philox.cuh"
#include "losses.cuh"
#include "outer.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween>
struct RegisterDirections : RegisterOuter<kPrecision, H, kGroups, kBetween> {
  using Outer = RegisterOuter<kPrecision, H, kGroups, kBetween>;
  using Outer::group, Outer::meet, Outer::mine, Outer::output_of, Outer::own, Outer::part, Outer::row_of;
  using Outer::Outer;
  using Outer::seed, Outer::shared, Outer::step, Outer::store_inputs, Outer::valid, Outer::kParts, Outer::kRows;
  using typename Outer::Fragment, typename Outer::To;

  SK_INLINE bool cotangents() const { return step().from == From::kCotangents; }

  // Of this lane's rows, four columns of direction p, or cotangent p, of n numbers. Of at most 8 a lane draws those of
  // one row: half the lanes would have none else.
  SK_INLINE void direction(int p, int n, float (&v)[2][4]) const {
    const Directions& from = step().directions;
    const int t = lane() % 4;
    float4 of[2] = {};
    if (from.distribution == Distribution::kGiven) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] = valid(half) && 4 * t + i < n ? number(from.given, p, row_of(half), 4 * t + i) : 0.0f;
        }
        of[half] = make_float4(four[0], four[1], four[2], four[3]);
      }
    } else {
      const bool narrow = n <= 8;
      const int column = narrow ? t % 2 * 4 : t * 4;
#pragma unroll 1
      for (int i = 0; i < (narrow ? 1 : 2); ++i) {
        const int half = narrow ? t / 2 : i;
        if (!valid(half) || column >= n) continue;
        const std::uint32_t sample = from.shared ? 0u : seed()[3] + std::uint32_t(row_of(half));
        const float4 drawn = draw(from.distribution, seed(), sample, p, column, n);
        (i == 0 ? of[0] : of[1]) = drawn;
      }
      if (narrow) {
        of[1] = make_float4(__shfl_xor_sync(~0u, of[0].x, 2), __shfl_xor_sync(~0u, of[0].y, 2),
                            __shfl_xor_sync(~0u, of[0].z, 2), __shfl_xor_sync(~0u, of[0].w, 2));
        if (t >= 2) of[0] = of[1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float factor = from.distribution == Distribution::kGiven ? 1.0f : float(from.magnitude);
      if (from.distribution == Distribution::kSphere) {
        float square =
            of[half].x * of[half].x + of[half].y * of[half].y + of[half].z * of[half].z + of[half].w * of[half].w;
        square += __shfl_xor_sync(~0u, square, 1);
        square += __shfl_xor_sync(~0u, square, 2);
        factor = valid(half) ? factor / sqrtf(square) : 0.0f;
      }
      v[half][0] = of[half].x * factor, v[half][1] = of[half].y * factor;
      v[half][2] = of[half].z * factor, v[half][3] = of[half].w * factor;
    }
  }

  // ---- Tangents of the target ----

  SK_INLINE std::uint32_t source_at(int p) const {
    return own().source + p % own().batch * (kRows * kRegisterInputs * To::kBytes);
  }
  SK_INLINE float4& targets_at(int p) const {
    return reinterpret_cast<float4*>(shared + own().targets)[(p % own().batch * kGroups + group()) * 32 + lane()];
  }

  // Directions from p on, of a batch, and the tangents of the target along them; warps that share rows share them
  SK_INLINE void prepare_tangents(int from) const {
    const bool dense = step().target[Term::kFirst].kind != TargetKind::kProjected;
    const int to = min(step().P, from + own().batch);
#pragma unroll 1
    for (int p = from + part(); p < to; p += kParts) {
      float v[2][4];
      direction(p, step().W, v);
      Fragment source;
      To::pack_inputs(v, source);
      store_inputs(source_at(p), source);
      if (dense) {
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          *reinterpret_cast<float4*>(mine() + (lane() / 4 + 8 * half) * kOwnRow + lane() % 4 * 4) =
              make_float4(v[half][0], v[half][1], v[half][2], v[half][3]);
        }
        __syncwarp();
      }
#pragma unroll 1
      for (int half = 0; half < 2; ++half)
        reinterpret_cast<float2*>(&targets_at(p))[half] = tangent_targets(p, half, dense);
    }
    meet();
  }

  // (Df(x)[v_p])_o of one of this lane's rows, and of its outputs
  SK_INLINE float2 tangent_targets(int p, int half, bool dense) const {
    const Strided& data = step().target[Term::kFirst].data;
    // rows and outputs that are not there have any number
    const std::int64_t row = min(row_of(half), step().N - 1);
    const int o[2] = {min(output_of(0), step().O - 1), min(output_of(1), step().O - 1)};
    if (!dense) return make_float2(number(data, p, row, o[0]), number(data, p, row, o[1]));
    const float* from = static_cast<const float*>(data.data) + row * data.stride[0] + o[0] * data.stride[1];
    const std::int64_t apart = (o[1] - o[0]) * data.stride[1];
    const float* v = mine() + (lane() / 4 + 8 * half) * kOwnRow;
    const bool wide = step().W % 4 == 0 && data.stride[0] % 4 == 0 && data.stride[1] % 4 == 0 && data.stride[2] == 1 &&
                      reinterpret_cast<std::uintptr_t>(data.data) % 16 == 0;
    float2 of = make_float2(0.0f, 0.0f);
    if (wide) {
#pragma unroll 2
      for (int d = 0; d < step().W; d += 4) {
        const float4 x = *reinterpret_cast<const float4*>(from + d), y = *reinterpret_cast<const float4*>(v + d);
        const float4 z = *reinterpret_cast<const float4*>(from + apart + d);
        of.x = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, of.x))));
        of.y = fmaf(z.x, y.x, fmaf(z.y, y.y, fmaf(z.z, y.z, fmaf(z.w, y.w, of.y))));
      }
    } else {
#pragma unroll 2
      for (int d = 0; d < step().W; ++d, from += data.stride[2]) {
        of.x = fmaf(from[0], v[d], of.x), of.y = fmaf(from[apart], v[d], of.y);
      }
    }
    return of;
  }

  // ---- Cotangents of the outputs, and the gradients of what they weigh ----

  // [16, 8] of this warp's rows, of which one number of eight rows lies in different banks; and the target's gradients,
  // [16, 16], with one of the warps that share rows
  SK_INLINE float* cotangent_at(int p, int half, int o) const {
    const int row = lane() / 4 + 8 * half, place = row * kRegisterOutputs + (o ^ lane() / 16 * 4);
    return reinterpret_cast<float*>(shared + own().targets) + (p % own().batch * kGroups + group()) * 128 + place;
  }
  SK_INLINE float4& gradient_targets_at(int p, int half) const {
    return reinterpret_cast<float4*>(shared + own().own +
                                     kOwnBytes * (group() * kParts + p % own().batch))[lane() + 32 * half];
  }
  // Of this lane's rows and outputs
  SK_INLINE void cotangent(int p, float (&to)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 two = *reinterpret_cast<const float2*>(cotangent_at(p, half, output_of(0)));
      to[2 * half] = two.x, to[2 * half + 1] = two.y;
    }
  }

  // Cotangents from p on, of a batch, and the target's gradients; warps that share rows share them
  SK_INLINE void prepare_cotangents(int from) const {
    const Target& target = step().target[Term::kFirst];
    const int to = min(step().P, from + own().batch), column = lane() % 4 * 4;
#pragma unroll 1
    for (int p = from + part(); p < to; p += kParts) {
      float u[2][4];
      direction(p, step().O, u);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (column >= kRegisterOutputs) continue;
        float4& at = *reinterpret_cast<float4*>(cotangent_at(p, half, column));
        at = make_float4(u[half][0], u[half][1], u[half][2], u[half][3]);
      }
      __syncwarp();
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        // rows and inputs that are not there have any number
        const std::int64_t row = min(row_of(half), step().N - 1);
        float of[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const auto add = [&](float factor, auto number_of) {
#pragma unroll
          for (int i = 0; i < 4; ++i) of[i] = fmaf(factor, number_of(min(column + i, int(step().W) - 1)), of[i]);
        };
        if (target.kind == TargetKind::kProjected) {
          add(1.0f, [&](int d) { return number(target.data, p, row, d); });
        } else {
#pragma unroll 2
          for (int o = 0; o < step().O; ++o) {
            add(*cotangent_at(p, half, o), [&](int d) { return number(target.data, row, o, d); });
          }
        }
        gradient_targets_at(p, half) = make_float4(of[0], of[1], of[2], of[3]);
      }
    }
    meet();
  }

  // Of the gradient for cotangent p, and its adjoint
  SK_INLINE void gradient_residuals(int p, const Sums (&pulled)[2], float (&g_bar)[2][4], float (&rho)[2]) const {
    const float of_output = step().directions.distribution == Distribution::kBasis ? output_weight(step(), p) : 1.0f;
    const int column = lane() % 4 * 4;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const float4 target = gradient_targets_at(p, half);
      float added = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float of = 0.0f;
        if (valid(half) && column + i < step().W) {
          const float weight = of_output * derivative_weight(step(), p, row_of(half), column + i);
          const float r = (half ? To::input_of(pulled, 1, i) : To::input_of(pulled, 0, i)) - (&target.x)[i];
          of = slope(step(), Term::kFirst, row_of(half), r, weight, added, part() == 0);
        }
        g_bar[0][i] = half ? g_bar[0][i] : of, g_bar[1][i] = of;
      }
      rho[0] += half ? 0.0f : added, rho[1] += half ? added : 0.0f;
    }
    meet();  // before others write to what this warp has read
  }

  // ---- Outputs' gradients ----

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
          reinterpret_cast<const float4*>(shared + own().own) + kOwnBytes / 16 * kParts * group() + lane();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 of = from[32 * half];
#pragma unroll
        for (int i = 1; i < kParts; ++i) {
          const float4 more = from[kOwnBytes / 16 * i + 32 * half];
          of = make_float4(of.x + more.x, of.y + more.y, of.z + more.z, of.w + more.w);
        }
        g_bar[half][0] = of.x, g_bar[half][1] = of.y, g_bar[half][2] = of.z, g_bar[half][3] = of.w;
      }
    }
  }
};

}  // namespace sk::cuda
