// The primitives of the generated formulas for one float on the device, the formulas, and run-time choice among them.
#pragma once

#include <cmath>

#include "arguments.h"

namespace sk::cuda {

#define SK_INLINE __device__ __forceinline__

#include "../math/results.h"

SK_INLINE float where(bool condition, float yes, float no) { return condition ? yes : no; }
SK_INLINE double where(bool condition, double yes, double no) { return condition ? yes : no; }
SK_INLINE float abs(float x) { return fabsf(x); }
SK_INLINE float clamp(float x, float low, float high) { return x > high ? high : x < low ? low : x; }
SK_INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
SK_INLINE float cos(float x) { return cosf(x); }
SK_INLINE float erf(float x) { return erff(x); }
SK_INLINE float exp(float x) { return expf(x); }
SK_INLINE float expm1(float x) { return expm1f(x); }
SK_INLINE float log(float x) { return logf(x); }
SK_INLINE float log1p(float x) { return log1pf(x); }
SK_INLINE float sin(float x) { return sinf(x); }
SK_INLINE float sqrt(float x) { return sqrtf(x); }
SK_INLINE double sqrt(double x) { return ::sqrt(x); }
SK_INLINE float tanh(float x) { return tanhf(x); }

// A number of a formula whose result is rounded to 16 bits before it is multiplied: sobolev_kernels/math/coarse.py says
// what of it is less exact, and by how much.
struct Coarse {
  float x;
  SK_INLINE Coarse(float x) : x(x) {}
  SK_INLINE explicit Coarse(double x) : x(float(x)) {}
  SK_INLINE explicit operator float() const { return x; }
};
SK_INLINE Coarse operator+(Coarse a, Coarse b) { return a.x + b.x; }
SK_INLINE Coarse operator-(Coarse a, Coarse b) { return a.x - b.x; }
SK_INLINE Coarse operator*(Coarse a, Coarse b) { return a.x * b.x; }
SK_INLINE Coarse operator/(Coarse a, Coarse b) { return __fdividef(a.x, b.x); }
SK_INLINE Coarse operator-(Coarse a) { return -a.x; }
SK_INLINE bool operator<(Coarse a, Coarse b) { return a.x < b.x; }
SK_INLINE bool operator>(Coarse a, Coarse b) { return a.x > b.x; }
SK_INLINE Coarse where(bool condition, Coarse yes, Coarse no) { return condition ? yes : no; }
SK_INLINE Coarse abs(Coarse x) { return abs(x.x); }
SK_INLINE Coarse clamp(Coarse x, Coarse low, Coarse high) { return clamp(x.x, low.x, high.x); }
SK_INLINE Coarse exp(Coarse x) { return __expf(x.x); }
SK_INLINE Coarse sigmoid(Coarse x) { return Coarse(1.0f) / (Coarse(1.0f) + exp(-x)); }
SK_INLINE Coarse cos(Coarse x) { return cos(x.x); }
SK_INLINE Coarse erf(Coarse x) { return erf(x.x); }
SK_INLINE Coarse expm1(Coarse x) { return expm1(x.x); }
SK_INLINE Coarse log1p(Coarse x) { return log1p(x.x); }
SK_INLINE Coarse sin(Coarse x) { return sin(x.x); }
SK_INLINE Coarse tanh(Coarse x) { return tanh(x.x); }

#include "../math/generated.h"

// Of four numbers; the third derivative where it is asked for
template <bool kThird>
struct Activated {
  float value[4], d1[4], d2[4];
};
template <>
struct Activated<true> : Activated<false> {
  float d3[4];
};

// Functions, not inlined: a switch over all rows stands once in the program, whatever calls it. Four numbers at a time,
// for one call and for work that does not wait on itself.
template <class T, bool kThird = false>
__device__ __noinline__ Activated<kThird> activated(int row, float a, float b, float4 z) {
  const double parameters[2] = {a, b};
  Activated<kThird> result;
#define SK_CASE(row, name)                                                                      \
  case row:                                                                                     \
    _Pragma("unroll") for (int i = 0; i < 4; ++i) {                                             \
      const Derivatives<T> d = name::call(T((&z.x)[i]), parameters);                            \
      result.value[i] = float(d.value), result.d1[i] = float(d.d1), result.d2[i] = float(d.d2); \
      if constexpr (kThird) result.d3[i] = float(d.d3);                                         \
    }                                                                                           \
    break;
  switch (row) {
    SK_ACTIVATIONS(SK_CASE)
    default:
      __trap();
  }
#undef SK_CASE
  return result;
}

static __device__ __noinline__ Residual<float> residual(int row, float a, float b, float r) {
  const double parameters[2] = {a, b};
#define SK_CASE(row, name) \
  case row:                \
    return name::call(r, parameters);
  switch (row) {
    SK_LOSSES(SK_CASE)
    default:
      __trap();
  }
#undef SK_CASE
  return Residual<float>{};
}

}  // namespace sk::cuda
