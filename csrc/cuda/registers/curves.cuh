// σ' and σ''/σ' of what is kept, the values of an activation.
#pragma once

#include "../primitives.cuh"
#include "../registers.h"

namespace sk::cuda {

// σ' and σ''/σ' of tanh, and of what `Curve` describes
struct TanhCurve {
  static SK_INLINE float first(float h) { return fmaf(-h, h, 1.0f); }
  static SK_INLINE float ratio(float h) { return -2.0f * h; }
};

struct AnyCurve {
  const Curve& of;
  SK_INLINE float first(float h) const {
    float y = fmaf(fmaf(of.first[2], h, of.first[1]), h, of.first[0]);
    if (of.beta != 0.0f) y -= expf(-of.beta * h);
    return of.split && h > 0.0f ? of.top : y;
  }
  SK_INLINE float ratio(float h) const {
    if (of.split && !(h < 0.0f)) return h == h ? 0.0f : h;
    float y = fmaf(of.ratio[1], h, of.ratio[0]);
    if (of.beta != 0.0f) y += of.beta * expf(-of.beta * h);
    return y;
  }
};

}  // namespace sk::cuda
