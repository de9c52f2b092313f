// First and second derivatives along directions, of a roomy way: both go through a layer together, and both adjoints
// back (docs/math.md, section 10).
#pragma once

#include "step.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, Room kRoom>
struct RegisterSecond : RegisterStep<kPrecision, H, kGroups, kBetween, kRoom> {
  using Base = RegisterStep<kPrecision, H, kGroups, kBetween, kRoom>;
  using Base::Base;
  using Base::clear, Base::each_two, Base::group, Base::has, Base::hidden, Base::kept_at;
  using Base::kKeptInHalves, Base::kMine, Base::kOutputPieces, Base::kOutputs, Base::kParts, Base::kRows,
      Base::load_eight, Base::load_inputs;
  using Base::meet, Base::mine, Base::output_of, Base::output_pieces, Base::own, Base::part, Base::ready, Base::row_of;
  using Base::source_at, Base::step, Base::store, Base::store_eight, Base::store_inputs, Base::sum, Base::targets_at;
  using Base::valid, Base::y;
  using typename Base::Columns, typename Base::Fragment, typename Base::Operands, typename Base::Source,
      typename Base::To;
  static constexpr int kStreams = 2;
  static_assert(kParts >= kMostBatch);  // a warp has one direction of a batch
  using Both = Columns[kStreams];
  template <class F>
  static SK_INLINE void each_stream(F f) {
    unrolled<kStreams>(f);
  }

  SK_INLINE void run() {
    float rho[Base::kTerms][2] = {};
    Source x;
    Base::load_x(x);
    Base::values_forward(x);
    bool owed = false;
#pragma unroll 1
    for (int p = 0; p < step().P; ++p) {
      if (p % own().batch == 0) prepare(p);
      along(p, owed, rho);
      owed = step().gradients && weighs();
    }
    Base::value_residual(owed, rho[Term::kValue]);
    Base::leave(rho);
  }

  SK_INLINE bool weighs() const { return step().factor[Term::kFirst] != 0.0f || step().factor[Term::kSecond] != 0.0f; }

  // ---- What is compared ----

  SK_INLINE float4& second_targets_at(int p, int n) const {
    return *reinterpret_cast<float4*>(reinterpret_cast<unsigned char*>(&targets_at(p, n)) + own().apart);
  }
  // Directions from p on, of a batch, with the target's derivatives along them; before the first product all warps that
  // share rows meet
  SK_INLINE void prepare(int from) const {
    Base::prepare_tangents(from);
    const int p = from + part();
    if (p < min(step().P, from + own().batch)) {
#pragma unroll 1
      for (int i = 0; i < 2 * output_pieces(); ++i) {
        reinterpret_cast<float2*>(&second_targets_at(p, i / 2))[i % 2] = second_targets(p, i % 2, i / 2);
      }
    }
  }
  // (D²f(x)[v_p, v_p])_o of one of this lane's rows, and of its outputs of piece n; this warp has v_p
  SK_INLINE float2 second_targets(int p, int half, int n) const {
    const Target& target = step().target[Term::kSecond];
    float2 of = make_float2(0.0f, 0.0f);
    if (target.kind == TargetKind::kNone) return of;
    // rows and outputs that are not there have any number
    const std::int64_t row = min(row_of(half), step().N - 1);
    const int o[2] = {min(output_of(4 * n), step().O - 1), min(output_of(4 * n + 1), step().O - 1)};
    const Strided& data = target.data;
    if (target.kind == TargetKind::kProjected)
      return make_float2(number(data, p, row, o[0]), number(data, p, row, o[1]));
    const float* from = static_cast<const float*>(data.data) + row * data.stride[0] + o[0] * data.stride[1];
    const std::int64_t apart = (o[1] - o[0]) * data.stride[1];
    const float* v = mine() + (lane() / 4 + 8 * half) * Base::own_row();
#pragma unroll 1
    for (int d = 0; d < step().W; ++d, from += data.stride[2]) {
      float2 row_of_it = make_float2(0.0f, 0.0f);
      const float* at = from;
#pragma unroll 2
      for (int e = 0; e < step().W; ++e, at += data.stride[3]) {
        row_of_it.x = fmaf(at[0], v[e], row_of_it.x), row_of_it.y = fmaf(at[apart], v[e], row_of_it.y);
      }
      of.x = fmaf(row_of_it.x, v[d], of.x), of.y = fmaf(row_of_it.y, v[d], of.y);
    }
    return of;
  }
  // The slope of a residual of a term, which without a target is nothing
  SK_INLINE float slope_of(Term term, int half, float r, float weight, float& rho) const {
    if (step().target[term].kind == TargetKind::kNone) return 0.0f;
    return slope(step(), term, row_of(half), r, weight, rho, part() == 0);
  }
  // Residuals of both derivatives of pieces of outputs from one on, and their adjoints
  SK_INLINE void residuals(int p, int from, const Sums (&z)[kStreams][kOutputPieces], float (&back)[kStreams][kOutputs],
                           float (&rho)[Base::kTerms][2]) {
#pragma unroll
    for (int n = 0; n < kOutputPieces; ++n) {
      const bool there = has(4 * (from + n));
      const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      const float4 first = there ? targets_at(p, from + n) : none,
                   second = there ? second_targets_at(p, from + n) : none;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = 4 * (from + n) + i, o = output_of(e), half = i / 2;
        back[0][4 * n + i] = back[1][4 * n + i] = 0.0f;
        if (!has(e) || !valid(half) || o >= step().O) continue;
        const Along of(z[0][n][i], z[1][n][i], y(Base::kD1, e), y(Base::kD2, e), y(Base::kD3, e));
        const float weight = weight_of(step(), p, row_of(half), o);
        const float a1 = slope_of(Term::kFirst, half, of.h_dot - (&first.x)[i], weight, rho[Term::kFirst][half]);
        const float a2 = slope_of(Term::kSecond, half, of.h_ddot - (&second.x)[i], weight, rho[Term::kSecond][half]);
        const Pulled to(a1, a2, y(Base::kD1, e), of.curved, of.bent);
        back[0][4 * n + i] = to.first, back[1][4 * n + i] = to.second;
        y(Base::kOwed, e) += to.owed;
      }
    }
  }

  // ---- Formulas of one number ----

  // Through an activation, and what both derivatives owe the values: σ'' ż, and σ'' z̈ + σ''' ż²
  struct Along {
    float h_dot, h_ddot, curved, bent;
    SK_INLINE Along(float z_dot, float z_ddot, float d1, float d2, float d3)
        : h_dot(d1 * z_dot),
          h_ddot(fmaf(d1, z_ddot, d2 * z_dot * z_dot)),
          curved(d2 * z_dot),
          bent(fmaf(d2, z_ddot, d3 * z_dot * z_dot)) {}
  };
  // Back from the adjoints of ḣ and ḧ to those of ż and z̈, and what is owed to the values
  struct Pulled {
    float first, second, owed;
    SK_INLINE Pulled(float a1, float a2, float d1, float curved, float bent)
        : first(fmaf(d1, a1, 2.0f * curved * a2)), second(d1 * a2), owed(fmaf(curved, a1, bent * a2)) {}
  };

  // ---- A direction ----

  SK_INLINE unsigned char* curved_at(int l, int j, int which) const {
    return Base::of_block() + own().curved + Base::place_of_lane(l + which * hidden(), j, kKeptInHalves);
  }
  SK_INLINE void load_kept(int l, int j, int which, float (&to)[8]) const {
    load_eight(kept_at(l, j, which), kKeptInHalves, to);
  }
  // Where a stream's operands are, of one layer at a time
  static constexpr std::uint32_t kOfStream = kRows * H * To::kBytes;
  SK_INLINE void operands(Operands (&a)[kStreams]) const {
    a[0].array = own().operands, a[1].array = own().operands + kOfStream;
  }
  // f makes numbers of both streams of columns 16 j of this warp's, which are multiplied next; all have read the last
  template <class F>
  SK_INLINE void hand_both_on(std::uint32_t array, int l, F f) const {
    meet();
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      float of[kStreams][8];
      f(j, of);
      each_stream([&](auto i) {
        Fragment made;
        To::pack(of[i], made);
        store(own().operands + i * kOfStream, part() * kMine + j, made);
        Base::store_in_slot(array + i * own().apart, l, j, made);
      });
    }
    meet();
  }

  SK_INLINE void along(int p, bool owed, float (&rho)[Base::kTerms][2]) {
    Operands a[kStreams];
    operands(a);
    forward(p, a);
    const bool back = step().gradients && (weighs() || step().dgiven);
    Base::template each_window<kLastLayer>(0, output_pieces(), [&](int begin, int end, int at) {
      each_two(begin, end, [&](int n) {
        Sums z[kStreams][kOutputPieces] = {};
        float adjoints[kStreams][kOutputs];
        each_stream([&](auto i) { Base::through_last(a[i], n, n - begin + at, z[i]); });
        residuals(p, n, z, adjoints, rho);
        if (!back || part() != 0) return;
        each_stream([&](auto i) {
          Fragment made;
          To::pack_outputs(adjoints[i], made);
          store_inputs(Base::top_at(n) + i * own().apart, made);
        });
      });
    });
    if (!back) return meet();
    backward(a, owed);
    if (step().dgiven) Base::store_gradient(a[0], step().dgiven + p * step().N * step().W, step().W);
    typename Base::Top top;
    top.from = 0, top.to = output_pieces();
    __syncthreads();
    Base::template bring_to_slot<kStreams>(source_at(p), own().right, top, false);
    __syncthreads();
  }

  SK_INLINE void forward(int p, const Operands (&a)[kStreams]) const {
    Source source;
    source.array = source_at(p);
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Both c;
      clear(c[0]), clear(c[1]);
      Base::through(l, source, a[0], c[0]);
      if (l) Base::template product_between<false>(a[1], l, c[1]);  // directions are straight
      hand_both_on(own().right, l + 1, [&](int j, float (&of)[kStreams][8]) {
        float d1[8], d2[8], d3[8], curved[8], bent[8];
        load_kept(l + 1, j, 0, d1), load_kept(l + 1, j, 1, d2), load_kept(l + 1, j, 2, d3);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const Along to(sum(c[0], j, i), sum(c[1], j, i), d1[i], d2[i], d3[i]);
          of[0][i] = to.h_dot, of[1][i] = to.h_ddot, curved[i] = to.curved, bent[i] = to.bent;
        }
        store_eight(curved_at(l + 1, j, 0), kKeptInHalves, curved);
        store_eight(curved_at(l + 1, j, 1), kKeptInHalves, bent);
      });
    }
  }

  SK_INLINE void pull_top(Both& c) const {
    Base::template each_window<kLastLayer>(0, output_pieces(), [&](int begin, int end, int at) {
      each_two(begin, end, [&](int n) {
        each_stream([&](auto i) {
          Fragment made;
          load_inputs(made, Base::top_at(n) + i * own().apart);
          Base::pull_last(made, n, n - begin + at, c[i]);
        });
      });
    });
  }
  SK_INLINE void backward(const Operands (&a)[kStreams], bool owed) const {
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Both c;
      clear(c[0]), clear(c[1]);
      ready(l);
      if (l == hidden()) {
        pull_top(c);
      } else {
        each_stream([&](auto i) { Base::template product_between<true>(a[i], l, c[i]); });
      }
      hand_both_on(own().left, l, [&](int j, float (&of)[kStreams][8]) {
        float d1[8], curved[8], bent[8], q[8] = {};
        load_kept(l, j, 0, d1);
        load_eight(curved_at(l, j, 0), kKeptInHalves, curved);
        load_eight(curved_at(l, j, 1), kKeptInHalves, bent);
        if (owed) Base::load_q(l, j, q);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const Pulled to(sum(c[0], j, i), sum(c[1], j, i), d1[i], curved[i], bent[i]);
          of[0][i] = to.first, of[1][i] = to.second, q[i] += to.owed;
        }
        Base::store_q(l, j, q);
      });
    }
  }
};

}  // namespace sk::cuda
