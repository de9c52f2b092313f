// The primitives of `sobolev_kernels/math/primitives.py` for one number, and what a formula returns.
// Included inside the namespace of one instruction set (see cpu/kernels.cpp): no include here, no #pragma once.

#define SK_INLINE inline __attribute__((always_inline))

template <class T>
struct Derivatives {
  T value, d1, d2, d3;
};

template <class T>
struct Residual {
  T value, slope;
};

// A loss of the sums of r², a², a·t and t² over a sample's numbers, and its partial derivatives
template <class T>
struct Coupled {
  T value, rr, aa, at;
};

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
