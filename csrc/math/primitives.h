// The primitives of `sobolev_kernels/math/primitives.py` for one number.
// Included inside the namespace of one instruction set (see cpu/kernels.cpp): no include of another's, no #pragma once.

#define SK_INLINE inline __attribute__((always_inline))

#include "results.h"

namespace scalar {

template <class T>
SK_INLINE T abs(T x) {
  return std::fabs(x);
}
template <class T>
SK_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}
using std::cos;
using std::erf;
using std::exp;
using std::expm1;
using std::log;
using std::log1p;
using std::sin;
using std::sqrt;
using std::tanh;

}  // namespace scalar
