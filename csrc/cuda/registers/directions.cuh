// Directions and cotangents, given or drawn, and what is compared along them: the target's tangents, and gradients.
#pragma once

#include "../philox.cuh"
#include "coupled.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterDirections : RegisterCoupled<kPrecision, H, kGroups, kBetween, kRoom> {
  using Outer = RegisterCoupled<kPrecision, H, kGroups, kBetween, kRoom>;
  using Outer::kParts, Outer::kWide, Outer::measure, Outer::measuring, Outer::meet, Outer::mine, Outer::mine_at;
  using Outer::Outer, Outer::group, Outer::has, Outer::input_pieces, Outer::kCouples, Outer::kOutputs;
  using Outer::output_of, Outer::output_pieces, Outer::own, Outer::own_floats, Outer::own_row, Outer::part;
  using Outer::piece, Outer::pull_first, Outer::row_of, Outer::sample_weight, Outer::seed, Outer::slopes_of;
  using Outer::step, Outer::store_inputs, Outer::valid;
  using typename Outer::Fragment, typename Outer::Operands, typename Outer::To;

  static constexpr bool kRoomy = Outer::kRoomy;
  // Where arrays of directions are
  SK_INLINE unsigned char* of_block() const { return Outer::template of_block<kRoomy>(); }
  SK_INLINE bool cotangents() const { return step().from == From::kCotangents; }

  // Of this lane's rows, four columns of direction p, or cotangent p, of n numbers. Of at most 8 a lane draws those of
  // one row: half the lanes would have none else. Of several pieces, piece f before it is scaled, and its squares.
  template <bool kScaled = true>
  SK_INLINE void direction(int p, int n, float (&v)[2][4], int f = 0, float* squares = nullptr) const {
    const Directions& from = step().directions;
    const int t = lane() % 4, first = kScaled ? 4 * t : f * kRegisterInputs + 4 * t;
    float4 of[2] = {};
    if (from.distribution == Distribution::kGiven) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float four[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          four[i] = valid(half) && first + i < n ? number(from.given, p, row_of(half), first + i) : 0.0f;
        }
        of[half] = make_float4(four[0], four[1], four[2], four[3]);
      }
    } else {
      const bool narrow = kScaled && n <= 8;
      const int column = narrow ? t % 2 * 4 : first;
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
      float factor = from.distribution == Distribution::kGiven || !kScaled ? 1.0f : float(from.magnitude);
      if (from.distribution == Distribution::kSphere) {
        float square =
            of[half].x * of[half].x + of[half].y * of[half].y + of[half].z * of[half].z + of[half].w * of[half].w;
        if constexpr (kScaled) {
          factor = on_sphere(half, square, factor);
        } else {
          squares[half] += square;
        }
      }
      v[half][0] = of[half].x * factor, v[half][1] = of[half].y * factor;
      v[half][2] = of[half].z * factor, v[half][3] = of[half].w * factor;
    }
  }
  // What a direction is multiplied with that has such a sum of a lane's squares
  SK_INLINE float on_sphere(int half, float square, float factor) const {
    square += __shfl_xor_sync(~0u, square, 1);
    square += __shfl_xor_sync(~0u, square, 2);
    return valid(half) ? factor / sqrtf(square) : 0.0f;
  }
  // All pieces of direction p, or of cotangent p, of n numbers, which go to at(half, piece); and what they are still to
  // be multiplied with
  template <class At>
  SK_INLINE void all_pieces(int p, int n, int count, float (&factor)[2], At at) const {
    const Directions& from = step().directions;
    float squares[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int f = 0; f < count; ++f) {
      float v[2][4];
      direction<false>(p, n, v, f, squares);
#pragma unroll
      for (int half = 0; half < 2; ++half) at(half, f) = make_float4(v[half][0], v[half][1], v[half][2], v[half][3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      factor[half] = from.distribution == Distribution::kGiven ? 1.0f : float(from.magnitude);
      if (from.distribution == Distribution::kSphere) factor[half] = on_sphere(half, squares[half], factor[half]);
    }
  }

  // Those of a direction, where this warp has place for them
  SK_INLINE void all_inputs(int p, float (&factor)[2]) const {
    all_pieces(p, step().W, input_pieces(), factor, [&](int half, int f) -> float4& { return mine_at(half, f); });
  }

  // ---- Tangents of the target ----

  SK_INLINE std::uint32_t source_at(int p) const { return piece(own().source, p % own().batch * input_pieces()); }
  SK_INLINE int targets_number(int p, int n) const {
    return (p % own().batch * kGroups + group()) * (kRoomy ? (output_pieces() + 1) / 2 * 2 : output_pieces()) + n;
  }
  SK_INLINE float4& targets_at(int p, int n) const {
    return reinterpret_cast<float4*>(of_block() + own().targets)[targets_number(p, n) * 32 + lane()];
  }

  // Directions from p on, of a batch, and the tangents of the target along them; warps that share rows share them
  SK_INLINE void prepare_tangents(int from) const {
    const bool dense = step().target[Term::kFirst].kind != TargetKind::kProjected;
    const int to = min(step().P, from + own().batch);
#pragma unroll 1
    for (int p = from + part(); p < to; p += kParts) {
      float v[2][4];
      if constexpr (kWide) {
        float factor[2];
        __syncwarp();
        all_inputs(p, factor);
#pragma unroll 1
        for (int f = 0; f < input_pieces(); ++f) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float4 of = mine_at(half, f);
            v[half][0] = of.x * factor[half], v[half][1] = of.y * factor[half];
            v[half][2] = of.z * factor[half], v[half][3] = of.w * factor[half];
          }
          store_direction(v, piece(source_at(p), f));
          keep_direction(v, f);
        }
        __syncwarp();
      } else {
        direction(p, step().W, v);
        store_direction(v, source_at(p));
        if (dense) {
          __syncwarp();
          keep_direction(v, 0);
          __syncwarp();
        }
      }
#pragma unroll 1
      for (int i = 0; i < 2 * output_pieces(); ++i) {
        const int n = kWide ? i / 2 : 0, half = kWide ? i % 2 : i;
        reinterpret_cast<float2*>(&targets_at(p, n))[half] = tangent_targets(p, half, n, dense);
      }
    }
    meet();
  }
  SK_INLINE void store_direction(const float (&v)[2][4], std::uint32_t array) const {
    Fragment source;
    To::pack_inputs(v, source);
    store_inputs(array, source);
  }
  SK_INLINE void keep_direction(const float (&v)[2][4], int f) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      mine_at(half, f) = make_float4(v[half][0], v[half][1], v[half][2], v[half][3]);
    }
  }

  // (Df(x)[v_p])_o of one of this lane's rows, and of its outputs of piece n
  SK_INLINE float2 tangent_targets(int p, int half, int n, bool dense) const {
    if constexpr (Outer::kOrder == 2) {  // there may be those of second derivatives alone
      if (step().target[Term::kFirst].kind == TargetKind::kNone) return make_float2(0.0f, 0.0f);
    }
    const Strided& data = step().target[Term::kFirst].data;
    // rows and outputs that are not there have any number
    const std::int64_t row = min(row_of(half), step().N - 1);
    const int o[2] = {min(output_of(4 * n), step().O - 1), min(output_of(4 * n + 1), step().O - 1)};
    if (!dense) return make_float2(number(data, p, row, o[0]), number(data, p, row, o[1]));
    const float* from = static_cast<const float*>(data.data) + row * data.stride[0] + o[0] * data.stride[1];
    const std::int64_t apart = (o[1] - o[0]) * data.stride[1];
    const float* v = mine() + (lane() / 4 + 8 * half) * own_row();
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

  // [16, 8] of this warp's rows and a piece of outputs, of which one number of eight rows lies in different banks; and
  // the target's gradients, [16, 16] of a piece of inputs, with one of the warps that share rows
  SK_INLINE float* cotangent_at(int p, int half, int o) const {
    const int row = lane() / 4 + 8 * half, n = kWide ? o / kRegisterOutputs : 0;
    const int place = row * kRegisterOutputs + (o - n * kRegisterOutputs ^ lane() / 16 * 4);
    return reinterpret_cast<float*>(of_block() + own().targets) + targets_number(p, n) * 128 + place;
  }
  SK_INLINE float4& gradient_targets_at(int p, int half, int f) const {
    return reinterpret_cast<float4*>(
        of_block() + own().own + 4 * own_floats() * (group() * kParts + p % own().batch))[lane() + 32 * half + 64 * f];
  }
  // Of this lane's rows and outputs, of pieces n and the next
  SK_INLINE void cotangent(int p, int n, float (&to)[kOutputs]) const {
#pragma unroll
    for (int e = 0; e < kOutputs; e += 2) {
      float2 two = make_float2(0.0f, 0.0f);
      if (has(4 * n + e)) two = *reinterpret_cast<const float2*>(cotangent_at(p, e / 2 % 2, output_of(4 * n + e)));
      to[e] = two.x, to[e + 1] = two.y;
    }
  }

  // Cotangents from p on, of a batch, and the target's gradients; warps that share rows share them
  SK_INLINE void prepare_cotangents(int from) const {
    const Target& target = step().target[Term::kFirst];
    const int to = min(step().P, from + own().batch), of_lane = lane() % 4 * 4;
#pragma unroll 1
    for (int p = from + part(); p < to; p += kParts) {
      if constexpr (kRoomy) {
        const int count = (output_pieces() + 1) / 2;
        const auto at = [&](int half, int i) -> float4& {
          return *reinterpret_cast<float4*>(cotangent_at(p, half, 2 * kRegisterOutputs * i + of_lane));
        };
        float factor[2];
        all_pieces(p, step().O, count, factor, at);
#pragma unroll 1
        for (int i = 0; i < count; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float of = factor[half];
            float4& u = at(half, i);
            u = make_float4(of * u.x, of * u.y, of * u.z, of * u.w);
          }
        }
      } else {
        float u[2][4];
        direction(p, step().O, u);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (of_lane >= kRegisterOutputs * output_pieces()) continue;
          float4& at = *reinterpret_cast<float4*>(cotangent_at(p, half, of_lane));
          at = make_float4(u[half][0], u[half][1], u[half][2], u[half][3]);
        }
      }
      __syncwarp();
#pragma unroll 1
      for (int i = 0; i < 2 * input_pieces(); ++i) {
        // rows and inputs that are not there have any number
        const int half = kWide ? i % 2 : i, column = (kWide ? i / 2 * kRegisterInputs : 0) + of_lane;
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
        gradient_targets_at(p, half, kWide ? i / 2 : 0) = make_float4(of[0], of[1], of[2], of[3]);
      }
    }
    meet();
  }

  // Of piece f of the gradient for cotangent p, and its adjoint; `counts` if this warp is to add it to the term
  SK_INLINE void gradient_residuals(int p, int f, const Sums (&pulled)[2], float (&g_bar)[2][4], float (&rho)[2],
                                    bool counts) const {
    const float of_output = step().directions.distribution == Distribution::kBasis ? output_weight(step(), p) : 1.0f;
    const int column = f * kRegisterInputs + lane() % 4 * 4;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const float4 target = gradient_targets_at(p, half, f);
      float added = 0.0f;
      float4 slopes = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if constexpr (kCouples) {
        Compared of{
            {}, target, Outer::derivative_weights(p, half, column, 2, step().W), sample_weight(Term::kFirst, half)};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          (&of.a.x)[i] = half ? To::input_of(pulled, 1, i) : To::input_of(pulled, 0, i), (&of.w.x)[i] *= of_output;
        }
        if (measuring) {
          measure(half, of);
          continue;
        }
        slopes = slopes_of(Term::kFirst, half, of, counts);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float of = 0.0f;
        if constexpr (kCouples) {
          of = (&slopes.x)[i];
        } else if (valid(half) && column + i < step().W) {
          const float weight = of_output * derivative_weight(step(), p, row_of(half), column + i);
          const float r = (half ? To::input_of(pulled, 1, i) : To::input_of(pulled, 0, i)) - (&target.x)[i];
          of = slope(step(), Term::kFirst, row_of(half), r, weight, added, counts);
        }
        g_bar[0][i] = half ? g_bar[0][i] : of, g_bar[1][i] = of;
      }
      rho[0] += half ? 0.0f : added, rho[1] += half ? added : 0.0f;
    }
  }

  // The same of all pieces, each by one of the warps that share rows; adjoints go where the next product reads them
  SK_INLINE void gradients_by_pieces(int p, const Operands& a, float (&rho)[2]) const {
    Outer::each_piece([&](int f, int at) {
      Sums pulled[2] = {};
      pull_first(a, at, pulled);
      float g_bar[2][4];
      gradient_residuals(p, f, pulled, g_bar, rho, true);
      if (measuring) return;
      Fragment source;
      To::pack_inputs(g_bar, source);
      store_inputs(piece(own().source, f), source);
    });
  }
};

}  // namespace sk::cuda
