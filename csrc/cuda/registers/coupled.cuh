// Losses that couple all numbers of a sample (docs/math.md, section 11): five sums over them in double, what slopes are
// made of then, and slopes. Numbers of a row go by fours.
#pragma once

#include "losses.cuh"
#include "outer.cuh"

namespace sk::cuda {

// Numbers `first`, the next, and two that are `apart` from them, of a row that has n; 1 where there is no array, and 0
// where a row has none
static __device__ __noinline__ float4 four_of(const float* row, std::int64_t stride, int first, int apart, int n) {
  float4 to;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = first + i / 2 * apart + i % 2;
    (&to.x)[i] = at >= n ? 0.0f : row ? row[at * stride] : 1.0f;
  }
  return to;
}
SK_INLINE float4 product(float4 a, float4 b) { return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }

// Predictions, targets and weights of a lane's row, and the weight of its sample
struct Compared {
  float4 a, t, w;
  float sample;
};

// Adds four numbers to sums that are kThreads apart. What has weight 0 is 0, whatever its target.
static __device__ __noinline__ void add_to_sums(double* sums, Compared of) {
  double add[kCoupledSums] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double w = (&of.w.x)[i];
    const bool counts = w * of.sample != 0.0;
    const double a = counts ? (&of.a.x)[i] : 0.0, t = counts ? (&of.t.x)[i] : 0.0, r = a - t;
    add[0] += w * r * r, add[1] += w * a * a, add[2] += w * a * t, add[3] += w * t * t, add[4] += w;
  }
#pragma unroll
  for (int k = 0; k < kCoupledSums; ++k) sums[k * kThreads] += add[k];
}

// Slopes of four numbers, by ρ's partial derivatives
static __device__ __noinline__ float4 coupled_slopes(const double* by, Compared of, float factor) {
  const double whole = double(factor) * of.sample, rr = 2.0 * whole * by[0], aa = 2.0 * whole * by[1];
  const double at = whole * by[2];
  float4 to;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const double a = (&of.a.x)[i], t = (&of.t.x)[i], w = (&of.w.x)[i];
    (&to.x)[i] = whole * w == 0.0 ? 0.0f : float(w * (rr * (a - t) + aa * a + at * t));
  }
  return to;
}

// The same by a pointwise loss, and the sum of ρ
struct FourSlopes {
  float4 of;
  float rho;
};
static __device__ __noinline__ FourSlopes pointwise_slopes(Function loss, Compared of, float factor) {
  FourSlopes to{{}, 0.0f};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float w = (&of.w.x)[i] * of.sample, r = w == 0.0f ? 0.0f : (&of.a.x)[i] - (&of.t.x)[i];
    Residual<float> rho = LossMse::call(r, nullptr);
    if (loss.row != 0) rho = residual(loss.row, loss.parameters[0], loss.parameters[1], r);
    to.rho += rho.value * w;
    (&to.of.x)[i] = factor == 0.0f ? 0.0f : factor * rho.slope * w;
  }
  return to;
}

// ρ of a row's sums, and its partial derivatives
static __device__ __noinline__ float couple(int row, float a, float b, const double* sums, double* by) {
  const double parameters[2] = {a, b};
  const double rr = sums[0], aa = sums[kThreads], at = sums[2 * kThreads], tt = sums[3 * kThreads],
               ww = sums[4 * kThreads];
  Coupled<double> of{};
#define SK_CASE(row, name)                           \
  case row:                                          \
    of = name::call(rr, aa, at, tt, ww, parameters); \
    break;
  switch (row) {
    SK_COUPLED(SK_CASE)
    default:
      __trap();
  }
#undef SK_CASE
  by[0] = of.rr, by[1] = of.aa, by[2] = of.at;
  return float(of.value);
}

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterCoupled : RegisterOuter<kPrecision, H, kGroups, kBetween, kRoom> {
  using Outer = RegisterOuter<kPrecision, H, kGroups, kBetween, kRoom>;
  using Outer::Outer, Outer::group, Outer::kParts, Outer::meet, Outer::own, Outer::part, Outer::row_of, Outer::step;
  using Outer::valid;

  // Of order 2 and of other ways all is as if there were no such loss.
  static constexpr bool kCouples = kRoom == Room::kSlot;
  bool measuring = false;  // derivatives are added to the sums, and have no slopes yet

  SK_INLINE bool couples(Term term) const {
    if constexpr (kCouples) {
      return step().loss[term].row >= kPointwise;
    } else {
      return false;
    }
  }
  // Of a term what this lane has of the sum of ρ of a row: in the slot, behind the outputs' numbers
  SK_INLINE float& rho_at(Term term, int half) const {
    const int place = Outer::output_pieces() * kOutputNumbers + 2 * term + half;
    return (Outer::slot() + own().few)[place * kThreads + threadIdx.x];
  }
  SK_INLINE float sample_weight(Term term, int half) const {
    if (!valid(half)) return 0.0f;
    return step().sample_weight.data ? number(step().sample_weight, term, row_of(half)) : 1.0f;
  }

  // Weights of derivatives p of a lane's row, as `four_of` has them, or 0 of a row that is not there
  SK_INLINE float4 derivative_weights(int p, int half, int first, int apart, int n) const {
    const Strided& of = step().derivative_weight;
    const float* at = static_cast<const float*>(of.data);
    if (at) at += p * of.stride[0] + row_of(half) * of.stride[1];
    return four_of(at, of.stride[2], first, apart, valid(half) ? n : 0);
  }
  SK_INLINE float4 output_weights(int half, int first, int n) const {
    const Strided& of = step().output_weight;
    return four_of(static_cast<const float*>(of.data), of.stride[0], first, kRegisterOutputs, valid(half) ? n : 0);
  }

  // Each lane's sums of both of its rows, [kCoupledSums, kThreads]; behind them the partial derivatives of each row of
  // those that share it
  SK_INLINE double* coupled_at(int numbers) const {
    const int before = (Outer::output_pieces() * kOutputNumbers + kRhoNumbers) * kThreads;
    return reinterpret_cast<double*>(Outer::slot() + own().few + before) + numbers;
  }
  SK_INLINE double* sums_of(int half, int warp) const {
    return coupled_at(half * kCoupledSums * kThreads + 32 * warp + lane());
  }
  SK_INLINE double* partial_of(int half) const {
    const int row = 16 * group() + lane() / 4 + 8 * half;
    return coupled_at(2 * kCoupledSums * kThreads + kCoupledSlopes * row);
  }

  SK_INLINE void clear_sums() const {
#pragma unroll 1
    for (int i = 0; i < 2 * kCoupledSums; ++i) sums_of(0, warp())[i * kThreads] = 0.0;
  }
  SK_INLINE void measure(int half, const Compared& of) const { add_to_sums(sums_of(half, warp()), of); }
  // Slopes of four numbers of a row; ρ is added if told to, of a loss that couples when all sums are made
  SK_INLINE float4 slopes_of(Term term, int half, const Compared& of, bool added) const {
    const float factor = step().factor[term];
    if (couples(term)) return coupled_slopes(partial_of(half), of, factor);
    const FourSlopes made = pointwise_slopes(step().loss[term], of, factor);
    if (added) rho_at(term, half) += made.rho;
    return made.of;
  }

  // ρ and its partial derivatives of the sums that all lanes of a row have: each lane has one of two rows
  SK_INLINE void finish_sums(Term term) const {
    meet();
    if (part() == 0) {
#pragma unroll 1
      for (int i = 0; i < 2 * kCoupledSums; ++i) {
        double* to = sums_of(0, warp()) + i * kThreads;
        double of = 0.0;
        for (int k = 0; k < kParts; ++k) of += to[32 * k];
        of += __shfl_xor_sync(~0u, of, 1);
        of += __shfl_xor_sync(~0u, of, 2);
        *to = of;
      }
      const int mine = lane() % 4;
      if (mine < 2) {
        const Function& loss = step().loss[term];
        const float rho =
            couple(loss.row, loss.parameters[0], loss.parameters[1], sums_of(mine, warp()), partial_of(mine));
        const float sample = sample_weight(term, mine);
        rho_at(term, mine) = sample == 0.0f ? 0.0f : rho * sample;
      }
    }
    meet();
  }
};

}  // namespace sk::cuda
