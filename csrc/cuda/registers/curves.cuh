// σ' and σ''/σ' of an activation's values, or as they are kept beside them.
#pragma once

#include "../primitives.cuh"
#include "../registers.h"

namespace sk::cuda {

// σ' and σ''/σ' of tanh, and of what `Curve` describes
struct TanhCurve {
  static SK_INLINE float first(float h) { return fmaf(-h, h, 1.0f); }
  static SK_INLINE float ratio(float h) { return -2.0f * h; }
};

template <class Real>
struct AnyCurve {
  const Curve& of;
  const bool split = of.split, curved = of.beta != 0.0f;
  SK_INLINE float exponential(float h) const { return float(exp(Real(-of.beta * h))); }
  SK_INLINE float first(float h) const {
    float y = fmaf(fmaf(of.first[2], h, of.first[1]), h, of.first[0]);
    if (curved) y -= exponential(h);
    return split && h > 0.0f ? of.top : y;
  }
  SK_INLINE float ratio(float h) const {
    if (split && !(h < 0.0f)) return h == h ? 0.0f : h;
    float y = fmaf(of.ratio[1], h, of.ratio[0]);
    if (curved) y += of.beta * exponential(h);
    return y;
  }
};

// Where they are no functions of the value. Their product is σ'', so the first is kept away from 0 where the other is
// not.
struct KeptCurve {};

// Of eight numbers
template <class C>
struct Slopes {
  const C curve;
  float h[8];
  SK_INLINE float first(int i) const { return curve.first(h[i]); }
  SK_INLINE float ratio(int i) const { return curve.ratio(h[i]); }
};
template <>
struct Slopes<KeptCurve> {
  float of_first[8], of_ratio[8];
  SK_INLINE float first(int i) const { return of_first[i]; }
  SK_INLINE float ratio(int i) const { return of_ratio[i]; }
};

// Of order 2, the way back of the values
struct FirstCurve {};
template <>
struct Slopes<FirstCurve> {
  float of_first[8];
  SK_INLINE float first(int i) const { return of_first[i]; }
};

template <class To>
__device__ __noinline__ void keep_four(float4 d1, float4 d2, unsigned char* first, unsigned char* ratio) {
  float of[2][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float second = (&d2.x)[i], least = fabsf(second) * To::kLeastSlope;
    of[0][i] = fabsf((&d1.x)[i]) < least ? copysignf(least, (&d1.x)[i]) : (&d1.x)[i];
    of[1][i] = of[0][i] == 0.0f ? 0.0f : float(typename To::Real(second) / typename To::Real(of[0][i]));
  }
  To::store_four(first, of[0]), To::store_four(ratio, of[1]);
}

}  // namespace sk::cuda
