// The primitives for a SIMD register. float: polynomials in the register, about one unit in the last place.
// double: the C library's function, lane by lane; it is the dtype of checks, not of speed.
// Included inside the namespace of one instruction set: no include here, no #pragma once.
// Polynomials of exp, log, tanh, sin and cos: S. Moshier, Cephes, single precision.

using VecF = Vec<float>;
using VecD = Vec<double>;

#define SK_LANE_BY_LANE(name)                                                     \
  SK_INLINE VecD name(VecD x) {                                                   \
    for (int i = 0; i < VecD::kLanes; ++i) x.v[i] = scalar::name(double(x.v[i])); \
    return x;                                                                     \
  }
SK_LANE_BY_LANE(cos)
SK_LANE_BY_LANE(erf)
SK_LANE_BY_LANE(exp)
SK_LANE_BY_LANE(expm1)
SK_LANE_BY_LANE(log)
SK_LANE_BY_LANE(log1p)
SK_LANE_BY_LANE(sigmoid)
SK_LANE_BY_LANE(sin)
SK_LANE_BY_LANE(tanh)
#undef SK_LANE_BY_LANE

template <class T>
SK_INLINE Vec<T> sqrt(Vec<T> x) {
  for (int i = 0; i < Vec<T>::kLanes; ++i) x.v[i] = scalar::sqrt(T(x.v[i]));
  return x;
}

template <class T>
SK_INLINE Vec<T> abs(Vec<T> x) {
  constexpr auto kSign = typename Bits<T>::type(1) << (8 * sizeof(T) - 1);
  return typename Vec<T>::native(typename Vec<T>::mask(x.v) & ~kSign);
}

// a comparison that a NaN fails keeps the NaN
template <class T>
SK_INLINE Vec<T> clamp(Vec<T> x, Vec<T> low, Vec<T> high) {
  return where(x > high, high, where(x < low, low, x));
}

template <class T>
SK_INLINE Vec<T> copysign(Vec<T> magnitude, Vec<T> sign) {
  return where(sign < Vec<T>(0.0), -magnitude, magnitude);
}

SK_INLINE VecF nearest_integer(VecF x) {
  const VecF magic(12582912.0);  // 1.5 * 2^23
  return (x + magic) - magic;
}

SK_INLINE VecF::mask to_int(VecF x) { return __builtin_convertvector(x.v, VecF::mask); }

template <class... C>
SK_INLINE VecF polynomial(VecF x, double leading, C... rest) {
  VecF p(leading);
  ((p = p * x + VecF(rest)), ...);
  return p;
}

struct Reduced {
  VecF r;        // |r| <= log(2) / 2
  VecF squared;  // exp(r) = 1 + (r + squared)
  VecF two_n;    // exp(x) = 2^n exp(r); of n = -127 and 128 it has the bits of 0 and of infinity
};

SK_INLINE Reduced reduce_exp(VecF x) {
  const VecF n = nearest_integer(x * VecF(1.44269504088896341));
  const VecF r = (x - n * VecF(0.693359375)) - n * VecF(-2.12194440e-4);
  const VecF p = polynomial(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                            5.0000001201e-1);
  return {r, p * r * r, VecF::native((to_int(n) + 127) << 23)};
}

// 0 and infinity where the exponent ends: within half a power of two of where float has its least and largest number
SK_INLINE VecF exp(VecF x) {
  const Reduced e = reduce_exp(clamp(x, VecF(-88.0), VecF(89.0)));
  return (VecF(1.0) + (e.r + e.squared)) * e.two_n;
}

// of x <= 88: formulas ask for that of numbers <= 2
SK_INLINE VecF expm1(VecF x) {
  const Reduced e = reduce_exp(clamp(x, VecF(-88.0), VecF(88.0)));
  return (e.r + e.squared) * e.two_n + (e.two_n - VecF(1.0));
}

SK_INLINE VecF sigmoid(VecF x) { return VecF(1.0) / (VecF(1.0) + exp(-x)); }

SK_INLINE VecF tanh(VecF x) {
  const VecF a = abs(x);
  const VecF far = copysign(VecF(1.0) - VecF(2.0) / (exp(a + a) + VecF(1.0)), x);
  const VecF s = x * x;
  const VecF near =
      polynomial(s, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1) * s *
          x +
      x;
  return where(a > VecF(0.625), far, near);
}

struct ReducedLog {
  VecF e;         // x = 2^e (1 + m), m from √½ - 1 to √2 - 1
  VecF m, scale;  // scale: 2^-e, or 0 where x is that large
};

SK_INLINE ReducedLog reduce_log(VecF x) {
  const VecF::mask bits = VecF::mask(x.v);
  const VecF fraction = VecF::native((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const VecF::mask small = fraction < VecF(0.707106781186547524);
  const VecF e =
      VecF(__builtin_convertvector((bits >> 23) - 126, VecF::native)) - where<float>(small, VecF(1.0), VecF(0.0));
  const VecF half = VecF::native((254 - (bits >> 23)) << 23);
  return {e, where<float>(small, fraction + fraction, fraction) - VecF(1.0),
          where<float>(small, half, VecF(0.5) * half)};
}

// log(2^e (1 + m))
SK_INLINE VecF log_of(VecF e, VecF m) {
  const VecF s = m * m;
  const VecF p = polynomial(m, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1);
  const VecF tail = p * m * s + e * VecF(-2.12194440e-4) - VecF(0.5) * s;
  return (m + tail) + e * VecF(0.693359375);
}

// x > 0
SK_INLINE VecF log(VecF x) {
  const ReducedLog r = reduce_log(x);
  return where(x < VecF(__builtin_inff()), log_of(r.e, r.m), x);
}

// x > -1; what 1 + x is rounded by is added to m, where it counts
SK_INLINE VecF log1p(VecF x) {
  const VecF w = VecF(1.0) + x;
  const ReducedLog r = reduce_log(w);
  return where(w < VecF(__builtin_inff()), log_of(r.e, r.m + (x - (w - VecF(1.0))) * r.scale), w);
}

// Coefficients: N. Juffa, "Accurate and fast erff" (public domain), two intervals that meet at 475/512
SK_INLINE VecF erf(VecF x) {
  const VecF a = abs(x), s = x * x;
  const VecF t = where(a > VecF(4.0), VecF(4.0), a);
  const VecF q = polynomial(t, -1.72853470e-5, 3.83197126e-4, -3.88396438e-3, 2.42546219e-2, -1.06777877e-1,
                            -6.34846687e-1, -1.28717512e-1) *
                     t -
                 t;
  const VecF far = copysign(VecF(1.0) - exp(q), x);
  const VecF near =
      polynomial(s, -5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1) * x +
      x;
  return where(a > VecF(0.927734375), far, near);
}

template <class T>
struct SinCos {
  Vec<T> sin, cos;
};

// Beyond this the reduction by three constants loses digits, and the C library takes over
constexpr float kTrigonometricLimit = 8192.f;

SK_INLINE SinCos<double> sincos_near(VecD x) { return {sin(x), cos(x)}; }
SK_INLINE SinCos<float> sincos_near(VecF x) {
  const VecF n = nearest_integer(x * VecF(0.636619772367581343));
  const VecF r = ((x - n * VecF(1.5703125)) - n * VecF(4.837512969970703125e-4)) - n * VecF(7.54978995489188216e-8);
  const VecF z = r * r;
  const VecF s = polynomial(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1) * z * r + r;
  const VecF c = polynomial(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2) * z * z -
                 VecF(0.5) * z + VecF(1.0);
  const VecF::mask quadrant = to_int(n);
  const VecF::mask swapped = (quadrant & 1) != 0;
  const VecF sine = where<float>(swapped, c, s), cosine = where<float>(swapped, s, c);
  return {where<float>((quadrant & 2) != 0, -sine, sine), where<float>(((quadrant + 1) & 2) != 0, -cosine, cosine)};
}

SK_INLINE bool beyond_trigonometric_limit(VecF x) {
  const VecF a = abs(x);
  float largest = 0;
  for (int i = 0; i < VecF::kLanes; ++i) largest = a.v[i] > largest ? a.v[i] : largest;
  return largest > kTrigonometricLimit;
}

SK_INLINE VecF sin(VecF x) {
  if (!beyond_trigonometric_limit(x)) return sincos_near(x).sin;
  for (int i = 0; i < VecF::kLanes; ++i) x.v[i] = scalar::sin(float(x.v[i]));
  return x;
}

SK_INLINE VecF cos(VecF x) {
  if (!beyond_trigonometric_limit(x)) return sincos_near(x).cos;
  for (int i = 0; i < VecF::kLanes; ++i) x.v[i] = scalar::cos(float(x.v[i]));
  return x;
}
