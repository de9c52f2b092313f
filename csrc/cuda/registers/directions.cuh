// Directions and cotangents, given or drawn, and what is compared along them: the target's tangents, and gradients.
#pragma once

#include "../philox.cuh"
#include "coupled.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterDirections : RegisterCoupled<kPrecision, H, kGroups, kBetween, kRoom> {
  using Outer = RegisterCoupled<kPrecision, H, kGroups, kBetween, kRoom>;
  using Outer::couples, Outer::kCouples, Outer::measure, Outer::measuring, Outer::sample_weight, Outer::slopes_of;
  using Outer::group, Outer::has, Outer::input_pieces, Outer::kOutputs, Outer::kParts, Outer::kWide, Outer::meet,
      Outer::mine;
  using Outer::mine_at, Outer::output_of, Outer::output_pieces, Outer::own, Outer::own_floats, Outer::own_of,
      Outer::own_row, Outer::part, Outer::piece, Outer::pull_first;
  using Outer::Outer;
  using Outer::row_of, Outer::seed, Outer::shared, Outer::step, Outer::store_inputs, Outer::valid;
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

  // ---- Outputs' gradients ----

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
    Outer::each_piece([&](int f, int at) {
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
