// What each instruction does: one line in a table for most. Names are canonical (decode.py): no .rn, .approx, .sync...;
// rounding, .ftz and .sat are fields that `each` honours for every instruction.
//
// Approximate instructions (ex2, tanh, rsqrt...) are computed in double and rounded once: closer than hardware.

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {
namespace {

// ---- Values: a register is 64 bits, a narrow value lies in the low ones ----

// A 16-bit float with M bits of mantissa.
template <int M>
struct Small {
  static constexpr int BIAS = (1 << (14 - M)) - 1, INFINITE = ((1 << (15 - M)) - 1) << M;
  uint16_t bits;

  operator float() const {
    int magnitude = bits & 0x7fff;
    uint32_t sign = uint32_t(bits & 0x8000) << 16;
    if (magnitude >= INFINITE) return std::bit_cast<float>(sign | 0x7f800000u | uint32_t(magnitude - INFINITE) << 13);
    float x = std::bit_cast<float>(uint32_t(magnitude) << (23 - M)) * std::ldexp(1.0f, 127 - BIAS);
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) | sign);
  }

  // One rounding, in the current direction.
  static Small of(double x) {
    if (std::isnan(x)) return {0x7fff};
    uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isinf(x)) return {uint16_t(sign | INFINITE)};
    int exponent = std::max(x == 0 ? 1 - BIAS : std::ilogb(x), 1 - BIAS);
    double steps = std::abs(std::rint(std::ldexp(x, M - exponent)));
    int magnitude = int(steps) + ((exponent + BIAS - 1) << M);
    if (magnitude >= INFINITE) {
      int mode = fegetround();
      bool outward = mode == FE_TONEAREST || (mode == FE_UPWARD && !sign) || (mode == FE_DOWNWARD && sign);
      magnitude = outward ? INFINITE : INFINITE - 1;
    }
    return {uint16_t(sign | magnitude)};
  }
};
using f16 = Small<10>;
using bf16 = Small<7>;

template <class T>
struct Pair {
  T low, high;
};

template <class T>
inline constexpr bool is_small = std::is_same_v<T, f16> || std::is_same_v<T, bf16>;
template <class T>
inline constexpr bool is_pair = std::is_same_v<T, Pair<f16>> || std::is_same_v<T, Pair<bf16>>;
template <class T>
inline constexpr bool is_real = std::is_floating_point_v<T> || is_small<T>;

float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

template <class T>
T value(uint64_t bits, bool flush) {
  if constexpr (std::is_same_v<T, float>) {
    float x = std::bit_cast<float>(uint32_t(bits));
    return flush ? flushed(x) : x;
  } else if constexpr (std::is_same_v<T, double>) {
    return std::bit_cast<double>(bits);
  } else if constexpr (is_small<T>) {
    return T{uint16_t(bits)};
  } else if constexpr (is_pair<T>) {
    return T{{uint16_t(bits)}, {uint16_t(bits >> 16)}};
  } else if constexpr (std::is_same_v<T, bool>) {
    return bits & 1;
  } else {
    return T(bits);
  }
}

template <class T>
uint64_t bits_of(T x, const Instruction& i) {
  if constexpr (is_small<T>) {
    return i.saturate ? T::of(std::fmin(std::fmax(float(x), 0.0f), 1.0f)).bits : x.bits;
  } else if constexpr (is_pair<T>) {
    return bits_of(x.low, i) | bits_of(x.high, i) << 16;
  } else if constexpr (std::is_floating_point_v<T>) {
    if (i.saturate) x = std::fmin(std::fmax(x, T(0)), T(1));  // NaN becomes 0
    if constexpr (std::is_same_v<T, float>)
      return std::bit_cast<uint32_t>(i.flush ? flushed(x) : x);
    else
      return std::bit_cast<uint64_t>(x);
  } else {
    return uint64_t(int64_t(x));
  }
}

struct Direction {
  bool changed;
  explicit Direction(int rounding) : changed(rounding != NEAREST) {
    constexpr int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
    if (changed) std::fesetround(modes[rounding]);
  }
  ~Direction() {
    if (changed) std::fesetround(FE_TONEAREST);
  }
};

template <class F>
void for_lanes(uint32_t mask, F f) {
  for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

// ---- Elementwise instructions: a lambda on typed values, applied to every active lane ----

template <class F>
struct Signature : Signature<decltype(&F::operator())> {};
template <class F, class R, class... A>
struct Signature<R (F::*)(A...) const> {
  template <class Visitor>
  static void visit(Visitor v) {
    v.template operator()<A...>(std::index_sequence_for<A...>{});
  }
};

template <auto f>
void each(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  Signature<decltype(f)>::visit([&]<class... A, size_t... K>(std::index_sequence<K...>) {
    Direction direction(i.rounding);
    const uint64_t* in[] = {w.slot(m.ins(i)[K])...};
    uint64_t* out = w.slot(m.outs(i)[0]);
    for_lanes(mask, [&](int l) { out[l] = bits_of(f(value<A>(in[K][l], i.flush)...), i); });
  });
}

template <auto f>
void compare(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  Signature<decltype(f)>::visit([&]<class... A, size_t... K>(std::index_sequence<K...>) {
    const int32_t* ins = m.ins(i);
    const uint64_t* in[] = {w.slot(ins[K])...};
    const uint64_t* with = i.boolean == NONE ? nullptr : w.slot(ins[2]);
    for_lanes(mask, [&](int l) {
      bool yes = f(value<A>(in[K][l], i.flush)...), no = !yes;
      if (with) {
        bool c = with[l] & 1;
        auto combine = [&](bool x) { return i.boolean == AND ? x && c : i.boolean == OR ? x || c : x != c; };
        yes = combine(yes), no = combine(no);
      }
      w.slot(m.outs(i)[0])[l] = yes;
      if (i.n_outs > 1) w.slot(m.outs(i)[1])[l] = no;
    });
  });
}

template <class T>
using Wide = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
template <class T>
using Doubled = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                                   std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
T high(T a, T b) {
  return T((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T)));
}

template <class T>
T field(T a, uint32_t position, uint32_t length) {
  constexpr int W = 8 * sizeof(T);
  position &= 255, length &= 255;
  using U = std::make_unsigned_t<T>;
  if (!length) return 0;
  bool fill = std::is_signed_v<T> && (U(a) >> std::min<uint32_t>(position + length - 1, W - 1)) & 1;
  U result = position < W ? U(a) >> position : 0;
  uint32_t kept = std::min(length, position < W ? W - position : 0);
  if (kept >= W) return T(result);
  U low = (U(1) << kept) - 1;
  return T(fill ? result | ~low : result & low);
}

template <class T>
T inserted(T a, T b, uint32_t position, uint32_t length) {
  constexpr uint32_t W = 8 * sizeof(T);
  position &= 255, length &= 255;
  for (uint32_t k = 0; k < length && position + k < W; k++)
    b = (b & ~(T(1) << (position + k))) | (((a >> k) & 1) << (position + k));
  return b;
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int k = 0; k < 4; k++) {
    uint32_t s = selector >> (4 * k), byte = bytes >> (8 * (s & 7)) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * k);
  }
  return result;
}

uint32_t logic(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (int k = 0; k < 8; k++)
    if (table >> k & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return result;
}

template <class T>
T smaller(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T larger(T a, T b) {
  return -smaller(-a, -b);
}
template <class T>
bool unordered(T a, T b) {
  return std::isnan(a) || std::isnan(b);
}

float to_tf32(float x) {  // to nearest, ties away from zero
  uint32_t u = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? std::bit_cast<float>((u + 0x1000) & ~0x1fffu) : x;
}

using Table = std::map<std::string, Handler>;

template <class T>
void comparisons(Table& t, const std::string& type) {
  t["setp.eq." + type] = {compare<[](T a, T b) { return a == b; }>};
  t["setp.lt." + type] = {compare<[](T a, T b) { return a < b; }>};
  t["setp.le." + type] = {compare<[](T a, T b) { return a <= b; }>};
  t["setp.gt." + type] = {compare<[](T a, T b) { return (a > b); }>};
  t["setp.ge." + type] = {compare<[](T a, T b) { return a >= b; }>};
  if constexpr (std::is_integral_v<T>) {
    t["setp.ne." + type] = {compare<[](T a, T b) { return a != b; }>};
  } else {
    t["setp.ne." + type] = {compare<[](T a, T b) { return !unordered<double>(a, b) && a != b; }>};
    t["setp.equ." + type] = {compare<[](T a, T b) { return unordered<double>(a, b) || a == b; }>};
    t["setp.neu." + type] = {compare<[](T a, T b) { return a != b; }>};
    t["setp.ltu." + type] = {compare<[](T a, T b) { return !(a >= b); }>};
    t["setp.leu." + type] = {compare<[](T a, T b) { return !(a > b); }>};
    t["setp.gtu." + type] = {compare<[](T a, T b) { return !(a <= b); }>};
    t["setp.geu." + type] = {compare<[](T a, T b) { return !(a < b); }>};
    t["setp.num." + type] = {compare<[](T a, T b) { return !unordered<double>(a, b); }>};
    t["setp.nan." + type] = {compare<[](T a, T b) { return unordered<double>(a, b); }>};
  }
}

template <class T>
void integers(Table& t, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t W = 8 * sizeof(T);
  comparisons<T>(t, type);
  t["add." + type] = {each<[](U a, U b) { return T(a + b); }>};
  t["sub." + type] = {each<[](U a, U b) { return T(a - b); }>};
  t["neg." + type] = {each<[](U a) { return T(-a); }>};
  t["abs." + type] = {each<[](T a) { return T(a < 0 ? -U(a) : U(a)); }>};
  t["mul.lo." + type] = {each<[](uint64_t a, uint64_t b) { return T(a * b); }>};
  t["mul.hi." + type] = {each<[](T a, T b) { return high(a, b); }>};
  t["mad.lo." + type] = {each<[](uint64_t a, uint64_t b, uint64_t c) { return T(a * b + c); }>};
  t["mad.hi." + type] = {each<[](T a, T b, U c) { return T(U(high(a, b)) + c); }>};
  t["div." + type] = {each<[](T a, T b) { return T(b == 0 ? ~U(0) : b == T(-1) && T(-1) < 0 ? -U(a) : U(a / b)); }>};
  t["rem." + type] = {each<[](T a, T b) { return T(b == 0 ? a : b == T(-1) && T(-1) < 0 ? 0 : a % b); }>};
  t["min." + type] = {each<[](T a, T b) { return std::min(a, b); }>};
  t["max." + type] = {each<[](T a, T b) { return std::max(a, b); }>};
  t["shr." + type] = {each<[](T a, uint32_t n) { return n < W ? T(a >> n) : T(a < 0 ? -1 : 0); }>};
  t["sad." + type] = {each<[](T a, T b, U c) { return T(c + (a < b ? U(b) - U(a) : U(a) - U(b))); }>};
  if constexpr (W < 64) {
    t["mul.wide." + type] = {each<[](T a, T b) { return Doubled<T>(Doubled<T>(a) * Doubled<T>(b)); }>};
    t["mad.wide." + type] = {
        each<[](T a, T b, Doubled<T> c) { return Doubled<T>(uint64_t(Doubled<T>(a) * Doubled<T>(b)) + uint64_t(c)); }>};
  }
  if constexpr (W > 16) {
    t["bfe." + type] = {each<[](T a, uint32_t b, uint32_t c) { return field(a, b, c); }>};
    t["bfind." + type] = {each<[](T a) { return uint32_t(W - 1 - std::countl_zero(a < 0 ? ~U(a) : U(a))); }>};
    t["bfind.shiftamt." + type] = {each<[](T a) {
      U bits = a < 0 ? ~U(a) : U(a);
      return bits ? uint32_t(std::countl_zero(bits)) : ~0u;
    }>};
  }
}

template <class T>
void bits(Table& t, const std::string& type) {
  constexpr uint32_t W = 8 * sizeof(T);
  t["mov." + type] = {each<[](T a) { return a; }>};
  t["selp." + type] = {each<[](T a, T b, bool c) { return c ? a : b; }>};
  t["and." + type] = {each<[](T a, T b) { return T(a & b); }>};
  t["or." + type] = {each<[](T a, T b) { return T(a | b); }>};
  t["xor." + type] = {each<[](T a, T b) { return T(a ^ b); }>};
  t["not." + type] = {each<[](T a) { return T(~a); }>};
  t["cnot." + type] = {each<[](T a) { return T(a == 0); }>};
  t["shl." + type] = {each<[](T a, uint32_t n) { return n < W ? T(a << n) : T(0); }>};
  if constexpr (W > 16) {
    t["bfi." + type] = {each<[](T a, T b, uint32_t c, uint32_t d) { return inserted(a, b, c, d); }>};
    t["popc." + type] = {each<[](T a) { return uint32_t(std::popcount(a)); }>};
    t["clz." + type] = {each<[](T a) { return uint32_t(std::countl_zero(a)); }>};
    t["brev." + type] = {each<[](T a) {
      T r = 0;
      for (uint32_t k = 0; k < W; k++) r |= T(a >> k & 1) << (W - 1 - k);
      return r;
    }>};
  }
}

template <class T>
void reals(Table& t, const std::string& type) {
  comparisons<T>(t, type);
  t["add." + type] = {each<[](T a, T b) { return a + b; }>};
  t["sub." + type] = {each<[](T a, T b) { return a - b; }>};
  t["mul." + type] = {each<[](T a, T b) { return a * b; }>};
  t["div." + type] = {each<[](T a, T b) { return a / b; }>};
  t["fma." + type] = {each<[](T a, T b, T c) { return std::fma(a, b, c); }>};
  t["neg." + type] = {each<[](T a) { return -a; }>};
  t["abs." + type] = {each<[](T a) { return std::abs(a); }>};
  t["min." + type] = {each<[](T a, T b) { return smaller(a, b); }>};
  t["max." + type] = {each<[](T a, T b) { return larger(a, b); }>};
  t["min.NaN." + type] = {each<[](T a, T b) { return unordered(a, b) ? T(NAN) : smaller(a, b); }>};
  t["max.NaN." + type] = {each<[](T a, T b) { return unordered(a, b) ? T(NAN) : larger(a, b); }>};
  t["copysign." + type] = {each<[](T a, T b) { return std::copysign(b, a); }>};
  t["sqrt." + type] = {each<[](T a) { return std::sqrt(a); }>};
  t["rcp." + type] = {each<[](T a) { return T(1) / a; }>};
  t["rsqrt." + type] = {each<[](T a) { return T(1 / std::sqrt(double(a))); }>};
  t["ex2." + type] = {each<[](T a) { return T(std::exp2(double(a))); }>};
  t["lg2." + type] = {each<[](T a) { return T(std::log2(double(a))); }>};
  t["sin." + type] = {each<[](T a) { return T(std::sin(double(a))); }>};
  t["cos." + type] = {each<[](T a) { return T(std::cos(double(a))); }>};
  t["tanh." + type] = {each<[](T a) { return T(std::tanh(double(a))); }>};
  t["round." + type] = {each<[](T a) { return std::rint(a); }>};
  t["testp.finite." + type] = {each<[](T a) { return bool(std::isfinite(a)); }>};
  t["testp.infinite." + type] = {each<[](T a) { return bool(std::isinf(a)); }>};
  t["testp.number." + type] = {each<[](T a) { return !std::isnan(a); }>};
  t["testp.notanumber." + type] = {each<[](T a) { return bool(std::isnan(a)); }>};
  t["testp.normal." + type] = {each<[](T a) { return bool(std::isnormal(a)); }>};
  t["testp.subnormal." + type] = {each<[](T a) { return std::fpclassify(a) == FP_SUBNORMAL; }>};
}

// 16-bit floats, alone and in pairs. Double holds sum, product and (to a rounding that no test of ours has met) fma.
template <class T, auto f>
void small(Table& t, const std::string& name, const std::string& type) {
  if constexpr (std::is_invocable_v<decltype(f), double>) {
    t[name + "." + type] = {each<[](T a) { return T::of(f(float(a))); }>};
    t[name + "." + type + "x2"] = {
        each<[](Pair<T> a) { return Pair<T>{T::of(f(float(a.low))), T::of(f(float(a.high)))}; }>};
  } else if constexpr (std::is_invocable_v<decltype(f), double, double>) {
    t[name + "." + type] = {each<[](T a, T b) { return T::of(f(float(a), float(b))); }>};
    t[name + "." + type + "x2"] = {each<[](Pair<T> a, Pair<T> b) {
      return Pair<T>{T::of(f(float(a.low), float(b.low))), T::of(f(float(a.high), float(b.high)))};
    }>};
  } else {
    t[name + "." + type] = {each<[](T a, T b, T c) { return T::of(f(float(a), float(b), float(c))); }>};
    t[name + "." + type + "x2"] = {each<[](Pair<T> a, Pair<T> b, Pair<T> c) {
      return Pair<T>{T::of(f(float(a.low), float(b.low), float(c.low))),
                     T::of(f(float(a.high), float(b.high), float(c.high)))};
    }>};
  }
}

template <class T>
void smalls(Table& t, const std::string& type) {
  comparisons<T>(t, type);
  small<T, [](double a, double b) { return a + b; }>(t, "add", type);
  small<T, [](double a, double b) { return a - b; }>(t, "sub", type);
  small<T, [](double a, double b) { return a * b; }>(t, "mul", type);
  small<T, [](double a, double b, double c) { return std::fma(a, b, c); }>(t, "fma", type);
  small<T, [](double a, double b, double c) { return larger(std::fma(a, b, c), 0.0); }>(t, "fma.relu", type);
  small<T, [](double a) { return -a; }>(t, "neg", type);
  small<T, [](double a) { return std::abs(a); }>(t, "abs", type);
  small<T, [](double a, double b) { return smaller(a, b); }>(t, "min", type);
  small<T, [](double a, double b) { return larger(a, b); }>(t, "max", type);
  small<T, [](double a, double b) { return unordered(a, b) ? NAN : smaller(a, b); }>(t, "min.NaN", type);
  small<T, [](double a, double b) { return unordered(a, b) ? NAN : larger(a, b); }>(t, "max.NaN", type);
  small<T, [](double a) { return std::tanh(a); }>(t, "tanh", type);
  small<T, [](double a) { return std::exp2(a); }>(t, "ex2", type);
}

// ---- Conversions ----

template <class To, class From>
void convert(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  Direction direction(i.rounding);
  const uint64_t* in = w.slot(m.ins(i)[0]);
  uint64_t* out = w.slot(m.outs(i)[0]);
  for_lanes(mask, [&](int l) {
    From x = value<From>(in[l], i.flush);
    if constexpr (is_small<To>) {
      out[l] = bits_of(To::of(double(x)), i);
    } else if constexpr (std::is_floating_point_v<To>) {
      if constexpr (is_small<From>)
        out[l] = bits_of(To(float(x)), i);
      else
        out[l] = bits_of(To(x), i);
    } else if constexpr (is_real<From>) {
      double y = std::rint(double(x));
      using Limits = std::numeric_limits<To>;
      out[l] = bits_of(std::isnan(y)                ? To(0)
                       : y <= double(Limits::min()) ? Limits::min()
                       : y >= double(Limits::max()) ? Limits::max()
                                                    : To(y),
                       i);
    } else if (i.saturate) {
      using Limits = std::numeric_limits<To>;
      __int128 y = x;
      out[l] = bits_of(To(std::clamp<__int128>(y, Limits::min(), Limits::max())), i);
    } else {
      out[l] = bits_of(To(x), i);
    }
  });
}

template <class From>
void conversions(Table& t, const std::string& from) {
  t["cvt.u8." + from] = {convert<uint8_t, From>};
  t["cvt.s8." + from] = {convert<int8_t, From>};
  t["cvt.u16." + from] = {convert<uint16_t, From>};
  t["cvt.s16." + from] = {convert<int16_t, From>};
  t["cvt.u32." + from] = {convert<uint32_t, From>};
  t["cvt.s32." + from] = {convert<int32_t, From>};
  t["cvt.u64." + from] = {convert<uint64_t, From>};
  t["cvt.s64." + from] = {convert<int64_t, From>};
  t["cvt.f16." + from] = {convert<f16, From>};
  t["cvt.bf16." + from] = {convert<bf16, From>};
  t["cvt.f32." + from] = {convert<float, From>};
  t["cvt.f64." + from] = {convert<double, From>};
}

// ---- Vectors of registers, carries ----

void pack(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  int width = 8 * i.size;
  for_lanes(mask, [&](int l) {
    uint64_t all = 0;
    for (int k = 0; k < i.n_ins; k++) all |= (w.slot(m.ins(i)[k])[l] & ((1ull << width) - 1)) << (width * k);
    w.slot(m.outs(i)[0])[l] = all;
  });
}

void unpack(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  int width = 8 * i.size;
  for_lanes(mask, [&](int l) {
    uint64_t all = w.slot(m.ins(i)[0])[l];
    for (int k = 0; k < i.n_outs; k++) w.slot(m.outs(i)[k])[l] = all >> (width * k) & ((1ull << width) - 1);
  });
}

// The last of outs and of ins is the carry.
template <class T, auto f>
void carried(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  const int32_t *in = m.ins(i), *out = m.outs(i);
  for_lanes(mask, [&](int l) {
    auto get = [&](int k) { return k < i.n_ins - 1 ? T(w.slot(in[k])[l]) : T(0); };
    unsigned __int128 r = f(get(0), get(1), get(2), unsigned(w.slot(in[i.n_ins - 1])[l] & 1));
    w.slot(out[0])[l] = T(r);
    if (i.n_outs > 1) w.slot(out[1])[l] = uint64_t(r >> (8 * sizeof(T))) & 1;
  });
}

template <class T>
void carries(Table& t, const std::string& type) {
  using U = unsigned __int128;
  t["add.cc." + type] = {carried<T, [](T a, T b, T, unsigned) { return U(a) + b; }>};
  t["addc." + type] = {carried<T, [](T a, T b, T, unsigned c) { return U(a) + b + c; }>};
  t["sub.cc." + type] = {carried<T, [](T a, T b, T, unsigned) { return U(a) - b; }>};
  t["subc." + type] = {carried<T, [](T a, T b, T, unsigned c) { return U(a) - b - c; }>};
  t["mad.lo.cc." + type] = {carried<T, [](T a, T b, T c, unsigned) { return U(T(U(a) * b)) + c; }>};
  t["mad.hi.cc." + type] = {carried<T, [](T a, T b, T c, unsigned) { return U(high(a, b)) + c; }>};
  t["madc.lo." + type] = {carried<T, [](T a, T b, T c, unsigned d) { return U(T(U(a) * b)) + c + d; }>};
  t["madc.hi." + type] = {carried<T, [](T a, T b, T c, unsigned d) { return U(high(a, b)) + c + d; }>};
  for (const char* name : {"addc.", "subc.", "madc.lo.", "madc.hi."}) t[name + ("cc." + type)] = t[name + type];
}

// ---- Memory ----

void load(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  auto r = m.request(w, i, mask, 0, i.size * i.n_outs);
  m.access(w, i, r, Mode::READ);
  for_lanes(mask, [&](int l) {
    for (int k = 0; k < i.n_outs; k++) {
      uint64_t x = r.host[l] ? 0 : ~0ull;
      if (r.host[l]) std::memcpy(&x, r.host[l] + k * i.size, i.size);
      int unused = 64 - 8 * i.size;
      w.slot(m.outs(i)[k])[l] = i.is_signed ? uint64_t(int64_t(x << unused) >> unused) : x;
    }
  });
}

void store(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  uint8_t data[LANES][32];
  int n = i.n_ins - 1;
  for_lanes(mask, [&](int l) {
    for (int k = 0; k < n; k++) std::memcpy(data[l] + k * i.size, &w.slot(m.ins(i)[1 + k])[l], i.size);
  });
  auto r = m.request(w, i, mask, 0, i.size * n);
  m.access(w, i, r, Mode::WRITE, data);
}

template <auto f>
void atomic(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  auto r = m.request(w, i, mask, 0, i.size);
  m.access(w, i, r, Mode::ATOMIC);
  Signature<decltype(f)>::visit([&]<class T, class... A, size_t... K>(std::index_sequence<0, K...>) {
    for_lanes(mask, [&](int l) {
      if (!r.host[l]) return;
      uint64_t old = 0;
      std::memcpy(&old, r.host[l], i.size);
      uint64_t now = bits_of(f(value<T>(old, false), value<A>(w.slot(m.ins(i)[K])[l], false)...), i);
      std::memcpy(r.host[l], &now, i.size);
      if (i.n_outs) w.slot(m.outs(i)[0])[l] = old;
    });
  });
}

template <class T>
void integer_atomics(Table& t, const std::string& type) {
  t["atom.add." + type] = {atomic<[](T a, T b) { return T(std::make_unsigned_t<T>(a) + b); }>};
  t["atom.min." + type] = {atomic<[](T a, T b) { return std::min(a, b); }>};
  t["atom.max." + type] = {atomic<[](T a, T b) { return std::max(a, b); }>};
  t["atom.and." + type] = {atomic<[](T a, T b) { return a & b; }>};
  t["atom.or." + type] = {atomic<[](T a, T b) { return a | b; }>};
  t["atom.xor." + type] = {atomic<[](T a, T b) { return a ^ b; }>};
  t["atom.exch." + type] = {atomic<[](T, T b) { return b; }>};
  t["atom.cas." + type] = {atomic<[](T a, T b, T c) { return a == b ? c : a; }>};
  t["atom.inc." + type] = {atomic<[](T a, T b) { return a >= b ? T(0) : T(a + 1); }>};
  t["atom.dec." + type] = {atomic<[](T a, T b) { return a == 0 || (a > b) ? b : T(a - 1); }>};
}

template <class T>
void small_atomics(Table& t, const std::string& type) {
  t["atom.add." + type] = {atomic<[](T a, T b) { return T::of(double(float(a)) + float(b)); }>};
  t["atom.add." + type + "x2"] = {atomic<[](Pair<T> a, Pair<T> b) {
    return Pair<T>{T::of(double(float(a.low)) + float(b.low)), T::of(double(float(a.high)) + float(b.high))};
  }>};
}

// Lane 8 k + r gives the address of row r of matrix k; lane l gets elements 2 (l % 4) and the next of row l / 4.
void ldmatrix(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  auto r = m.request(w, i, mask, 0, 16);
  if (i.n_outs < 4) r.mask &= (1u << (8 * i.n_outs)) - 1;
  m.access(w, i, r, Mode::READ);
  for (int k = 0; k < i.n_outs; k++)
    for_lanes(mask, [&](int l) {
      uint16_t two[2] = {0xffff, 0xffff};
      for (int e = 0; e < 2; e++) {
        int row = i.transposed ? 2 * (l % 4) + e : l / 4, column = i.transposed ? l / 4 : 2 * (l % 4) + e;
        const uint8_t* from = r.host[8 * k + row];
        if (from) std::memcpy(&two[e], from + 2 * column, 2);
      }
      w.slot(m.outs(i)[k])[l] = uint32_t(two[1]) << 16 | two[0];
    });
}

void stmatrix(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  uint8_t data[LANES][32] = {};
  int count = i.n_ins - 2;  // between the address and the member mask
  for (int k = 0; k < count; k++)
    for_lanes(mask, [&](int l) {
      for (int e = 0; e < 2; e++) {
        int row = i.transposed ? 2 * (l % 4) + e : l / 4, column = i.transposed ? l / 4 : 2 * (l % 4) + e;
        uint16_t half = uint16_t(w.slot(m.ins(i)[1 + k])[l] >> (16 * e));
        std::memcpy(data[8 * k + row] + 2 * column, &half, 2);
      }
    });
  auto r = m.request(w, i, mask, 0, 16);
  if (count < 4) r.mask &= (1u << (8 * count)) - 1;
  m.access(w, i, r, Mode::WRITE, data);
}

// ---- Lanes with each other. The last input is the member mask ----

void shuffle(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  const int32_t* in = m.ins(i);
  enum { IDX, UP, DOWN, BFLY };
  uint64_t from[LANES];
  std::memcpy(from, w.slot(in[0]), sizeof from);
  uint64_t *out = w.slot(m.outs(i)[0]), *found = i.n_outs > 1 ? w.slot(m.outs(i)[1]) : nullptr;
  for_lanes(mask, [&](int l) {
    int b = w.slot(in[1])[l] & 31, c = w.slot(in[2])[l] & 31, segment = w.slot(in[2])[l] >> 8 & 31;
    int last = (l & segment) | (c & ~segment), first = l & segment, j;
    bool ok;
    if (i.boolean == UP)
      j = l - b, ok = j >= last;
    else if (i.boolean == DOWN)
      j = l + b, ok = j <= last;
    else if (i.boolean == BFLY)
      j = l ^ b, ok = j <= last;
    else
      j = first | (b & ~segment), ok = j <= last;
    if (!ok) j = l;
    if (!(mask >> j & 1)) m.find(DIVERGENT_WARP, w, l, m.pc_of(i));
    out[l] = uint32_t(from[j]);
    if (found) found[l] = ok;
  });
}

uint32_t ballot(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  uint32_t yes = 0;
  for_lanes(mask, [&](int l) { yes |= uint32_t(w.slot(m.ins(i)[0])[l] & 1) << l; });
  return yes;
}

template <auto f>
void vote(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  uint64_t result = f(ballot(m, w, i, mask), mask);
  for_lanes(mask, [&](int l) { w.slot(m.outs(i)[0])[l] = result; });
}

template <auto f>
void reduce(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  Signature<decltype(f)>::visit([&]<class T, class, size_t... K>(std::index_sequence<K...>) {
    const uint64_t* in = w.slot(m.ins(i)[0]);
    T result = T(in[std::countr_zero(mask)]);
    for_lanes(mask & (mask - 1), [&](int l) { result = f(result, T(in[l])); });
    for_lanes(mask, [&](int l) { w.slot(m.outs(i)[0])[l] = bits_of(result, i); });
  });
}

template <class T>
void match_any(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  const uint64_t* in = w.slot(m.ins(i)[0]);
  uint32_t same[LANES] = {};
  for_lanes(mask, [&](int l) { for_lanes(mask, [&](int k) { same[l] |= uint32_t(T(in[l]) == T(in[k])) << k; }); });
  for_lanes(mask, [&](int l) { w.slot(m.outs(i)[0])[l] = same[l]; });
}

// ---- Tensor cores: C [16, 8] += A [16, K] B [K, 8], fragments as the PTX ISA lays them out ----
// Each product exact, their sum with C in double and rounded once: the order of the hardware's sum is not documented.

struct Tf32 {
  using Sum = double;
  static constexpr int PER_REGISTER = 1;
  static double element(uint32_t r, int) { return std::bit_cast<float>(r & ~0x1fffu); }
};
template <class T>
struct Halves {
  using Sum = double;
  static constexpr int PER_REGISTER = 2;
  static double element(uint32_t r, int k) { return float(T{uint16_t(r >> (16 * k))}); }
};
template <class T>
struct Bytes {
  using Sum = int64_t;
  static constexpr int PER_REGISTER = 4;
  static int64_t element(uint32_t r, int k) { return T(r >> (8 * k)); }
};

template <class E, class D>
void mma(Machine& m, Warp& w, const Instruction& i, uint32_t) {
  using Sum = typename E::Sum;
  constexpr int P = E::PER_REGISTER, PACKED = is_small<D> ? 2 : 1, ON_D = 4 / PACKED;
  const int32_t *in = m.ins(i), *out = m.outs(i);
  int in_a = (i.n_ins - 1 - ON_D) * 2 / 3, in_b = in_a / 2, K = 4 * P * in_b;
  Sum a[16][64], b[64][8];
  for (int r = 0; r < in_a; r++)
    for (int l = 0; l < LANES; l++)
      for (int e = 0; e < P; e++)
        a[l / 4 + 8 * (r & 1)][(l % 4) * P + e + 4 * P * (r >> 1)] = E::element(uint32_t(w.slot(in[r])[l]), e);
  for (int r = 0; r < in_b; r++)
    for (int l = 0; l < LANES; l++)
      for (int e = 0; e < P; e++)
        b[(l % 4) * P + e + 4 * P * r][l / 4] = E::element(uint32_t(w.slot(in[in_a + r])[l]), e);
  for (int l = 0; l < LANES; l++) {
    uint64_t result[4];
    for (int e = 0; e < 4; e++) {
      uint64_t c = w.slot(in[in_a + in_b + e / PACKED])[l] >> (PACKED == 2 && e % 2 ? 16 : 0);
      Sum sum = Sum(value<D>(c, false));
      for (int k = 0; k < K; k++) sum += a[l / 4 + 8 * (e >> 1)][k] * b[k][2 * (l % 4) + (e & 1)];
      if constexpr (is_small<D>)
        result[e] = D::of(sum).bits;
      else
        result[e] = bits_of(D(sum), i);
    }
    for (int e = 0; e < 4; e += PACKED)
      w.slot(out[e / PACKED])[l] = PACKED == 2 ? result[e] | result[e + 1] << 16 : result[e];
  }
}

// B of a wgmma as its descriptor says it lies in shared memory, 16 bytes at a time. A swizzle exchanges these among
// each other, by bits of their address; a row has the bytes of the swizzle, or 16 without one.
struct Described {
  uint64_t start, leading, stride;
  int row, moved;  // bytes of a row, bits that are exchanged

  explicit Described(uint64_t d)
      : start((d & 0x3fff) << 4), leading((d >> 16 & 0x3fff) << 4), stride((d >> 32 & 0x3fff) << 4) {
    int kind = int(d >> 62);  // none, 128 bytes, 64 bytes, 32 bytes
    row = kind ? 256 >> kind : 16, moved = kind ? 4 - kind : 0;
  }
  // Of a byte of a line, which is a column of B in its K numbers, or, if transposed, one of its K rows in N.
  uint64_t place(int line, int byte, bool transposed) const {
    uint64_t along = moved ? leading : transposed ? stride : leading, across = moved || !transposed ? stride : leading;
    uint64_t a = start + line / 8 * across + line % 8 * row + byte / row * along + byte % row;
    return a ^ ((a >> 7 & ((1u << moved) - 1)) << 4);
  }
};

// D [64, N] (+)= A [64, K] B [K, N] of four warps, of which each has 16 rows, A in its registers. It is done when it is
// issued: whether its registers and B are left alone until the wait is not seen.
template <class E>
void wgmma(Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
  constexpr int P = E::PER_REGISTER, K = 8 * P, BYTES = 4 / P;
  const int32_t *in = m.ins(i), *out = m.outs(i);
  int N = 2 * i.n_outs, lines = i.transposed ? K : N, chunks = (i.transposed ? N : K) * BYTES / 16;
  Described b(w.slot(in[i.n_outs + 4])[std::countr_zero(mask)]);
  bool keep = w.slot(in[i.n_outs + 5])[std::countr_zero(mask)] & 1;
  std::vector<uint8_t> numbers(size_t(lines) * chunks * 16, 0xff);
  for (int first = 0; first < lines * chunks; first += LANES) {
    Machine::Request r;
    r.size = 16, r.space = SHARED;
    for (int l = 0; l < LANES && first + l < lines * chunks; l++) {
      r.mask |= 1u << l;
      r.address[l] = b.place((first + l) / chunks, (first + l) % chunks * 16, i.transposed);
    }
    m.access(w, i, r, Mode::READ);
    for_lanes(r.mask, [&](int l) {
      if (r.host[l]) std::memcpy(&numbers[size_t(first + l) * 16], r.host[l], 16);
    });
  }
  double a[16][16];
  for (int r = 0; r < 4; r++)
    for (int l = 0; l < LANES; l++)
      for (int e = 0; e < P; e++)
        a[l / 4 + 8 * (r & 1)][(l % 4) * P + e + 4 * P * (r >> 1)] =
            E::element(uint32_t(w.slot(in[i.n_outs + r])[l]), e);
  auto of_b = [&](int k, int n) {
    int line = i.transposed ? k : n, at = i.transposed ? n : k;
    uint32_t bits = 0;
    std::memcpy(&bits, &numbers[size_t(line) * chunks * 16 + at * BYTES], BYTES);
    return E::element(bits, 0);
  };
  for (int e = 0; e < i.n_outs; e++)
    for (int l = 0; l < LANES; l++) {
      int row = l / 4 + 8 * (e >> 1 & 1), column = 8 * (e / 4) + 2 * (l % 4) + (e & 1);
      double sum = keep ? std::bit_cast<float>(uint32_t(w.slot(in[e])[l])) : 0.0;
      for (int k = 0; k < K; k++) sum += a[row][k] * of_b(k, column);
      w.slot(out[e])[l] = std::bit_cast<uint32_t>(float(sum));
    }
}

void mma_f64(Machine& m, Warp& w, const Instruction& i, uint32_t) {  // m8n8k4
  const int32_t *in = m.ins(i), *out = m.outs(i);
  auto real = [&](int slot, int l) { return std::bit_cast<double>(w.slot(slot)[l]); };
  for (int e = 0; e < 2; e++) {
    double result[LANES];
    for (int l = 0; l < LANES; l++) {
      result[l] = real(in[2 + e], l);
      for (int k = 0; k < 4; k++)
        result[l] = std::fma(real(in[0], l / 4 * 4 + k), real(in[1], (2 * (l % 4) + e) * 4 + k), result[l]);
    }
    for (int l = 0; l < LANES; l++) w.slot(out[e])[l] = std::bit_cast<uint64_t>(result[l]);
  }
}

// ---- The table ----

Table all_handlers() {
  Table t;
  integers<int16_t>(t, "s16"), integers<uint16_t>(t, "u16");
  integers<int32_t>(t, "s32"), integers<uint32_t>(t, "u32");
  integers<int64_t>(t, "s64"), integers<uint64_t>(t, "u64");
  bits<uint16_t>(t, "b16"), bits<uint32_t>(t, "b32"), bits<uint64_t>(t, "b64");
  t["mov.pred"] = {each<[](bool a) { return a; }>};
  t["and.pred"] = {each<[](bool a, bool b) { return a && b; }>};
  t["or.pred"] = {each<[](bool a, bool b) { return a || b; }>};
  t["xor.pred"] = {each<[](bool a, bool b) { return a != b; }>};
  t["not.pred"] = {each<[](bool a) { return !a; }>};
  t["selp.pred"] = {each<[](bool a, bool b, bool c) { return c ? a : b; }>};

  t["prmt.b32"] = {each<[](uint32_t a, uint32_t b, uint32_t c) { return permuted(a, b, c); }>};
  t["lop3.b32"] = {each<[](uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return logic(a, b, c, d); }>};
  t["shf.l.wrap.b32"] = {
      each<[](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) << (c & 31) >> 32); }>};
  t["shf.r.wrap.b32"] = {
      each<[](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) >> (c & 31)); }>};
  t["shf.l.clamp.b32"] = {each<[](uint32_t a, uint32_t b, uint32_t c) {
    return uint32_t((uint64_t(b) << 32 | a) << std::min(c, 32u) >> 32);
  }>};
  t["shf.r.clamp.b32"] = {
      each<[](uint32_t a, uint32_t b, uint32_t c) { return uint32_t((uint64_t(b) << 32 | a) >> std::min(c, 32u)); }>};
  t["mul24.lo.u32"] = {each<[](uint32_t a, uint32_t b) { return (a & 0xffffff) * (b & 0xffffff); }>};
  t["dp4a.u32.u32"] = {each<[](uint32_t a, uint32_t b, uint32_t c) {
    for (int k = 0; k < 32; k += 8) c += (a >> k & 255) * (b >> k & 255);
    return c;
  }>};
  t["dp4a.s32.s32"] = {each<[](uint32_t a, uint32_t b, int32_t c) {
    for (int k = 0; k < 32; k += 8) c += int8_t(a >> k) * int8_t(b >> k);
    return c;
  }>};

  reals<float>(t, "f32"), reals<double>(t, "f64");
  smalls<f16>(t, "f16"), smalls<bf16>(t, "bf16");
  carries<uint32_t>(t, "u32"), carries<uint64_t>(t, "u64");

  conversions<uint8_t>(t, "u8"), conversions<int8_t>(t, "s8");
  conversions<uint16_t>(t, "u16"), conversions<int16_t>(t, "s16");
  conversions<uint32_t>(t, "u32"), conversions<int32_t>(t, "s32");
  conversions<uint64_t>(t, "u64"), conversions<int64_t>(t, "s64");
  conversions<f16>(t, "f16"), conversions<bf16>(t, "bf16");
  conversions<float>(t, "f32"), conversions<double>(t, "f64");
  t["round.f16"] = {each<[](f16 a) { return f16::of(std::rint(double(float(a)))); }>};
  t["cvt.f16x2.f32"] = {each<[](float a, float b) { return Pair<f16>{f16::of(b), f16::of(a)}; }>};
  t["cvt.bf16x2.f32"] = {each<[](float a, float b) { return Pair<bf16>{bf16::of(b), bf16::of(a)}; }>};
  t["cvt.relu.f16x2.f32"] = {
      each<[](float a, float b) { return Pair<f16>{f16::of(larger(b, 0.0f)), f16::of(larger(a, 0.0f))}; }>};
  t["cvt.relu.bf16x2.f32"] = {
      each<[](float a, float b) { return Pair<bf16>{bf16::of(larger(b, 0.0f)), bf16::of(larger(a, 0.0f))}; }>};
  t["cvt.relu.f16.f32"] = {each<[](float a) { return f16::of(larger(a, 0.0f)); }>};
  t["cvt.relu.bf16.f32"] = {each<[](float a) { return bf16::of(larger(a, 0.0f)); }>};
  t["cvt.rna.tf32.f32"] = {each<[](float a) { return to_tf32(a); }>};

  t["pack"] = {pack};
  t["unpack"] = {unpack};
  t["ld"] = {load};
  t["st"] = {store};
  t["ldmatrix"] = {ldmatrix, Kind::WARP};
  t["stmatrix"] = {stmatrix, Kind::WARP};
  t["cp.async"] = {[](Machine& m, Warp& w, const Instruction& i, uint32_t mask) { m.copy_async(w, i, mask); }};
  t["cp.async.commit_group"] = {[](Machine& m, Warp& w, const Instruction&, uint32_t mask) { m.commit(w, mask); }};
  t["cp.async.wait_group"] = {[](Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
    m.wait(w, mask, int(w.slot(m.ins(i)[0])[std::countr_zero(mask)]));
  }};
  t["cp.async.wait_all"] = {[](Machine& m, Warp& w, const Instruction&, uint32_t mask) { m.wait(w, mask, -1); }};

  integer_atomics<uint32_t>(t, "u32"), integer_atomics<int32_t>(t, "s32");
  integer_atomics<uint64_t>(t, "u64"), integer_atomics<int64_t>(t, "s64");
  t["atom.cas.u16"] = {atomic<[](uint16_t a, uint16_t b, uint16_t c) { return a == b ? c : a; }>};
  t["atom.exch.u16"] = {atomic<[](uint16_t, uint16_t b) { return b; }>};
  t["atom.add.f32"] = {atomic<[](float a, float b) { return a + b; }>};
  t["atom.add.f64"] = {atomic<[](double a, double b) { return a + b; }>};
  small_atomics<f16>(t, "f16"), small_atomics<bf16>(t, "bf16");

  t["shfl.b32"] = {shuffle, Kind::WARP};
  t["vote.ballot.b32"] = {vote<[](uint32_t yes, uint32_t) { return yes; }>, Kind::WARP};
  t["vote.any.pred"] = {vote<[](uint32_t yes, uint32_t) { return yes != 0; }>, Kind::WARP};
  t["vote.all.pred"] = {vote<[](uint32_t yes, uint32_t all) { return yes == all; }>, Kind::WARP};
  t["vote.uni.pred"] = {vote<[](uint32_t yes, uint32_t all) { return yes == all || yes == 0; }>, Kind::WARP};
  t["match.any.b32"] = {match_any<uint32_t>, Kind::WARP};
  t["match.any.b64"] = {match_any<uint64_t>, Kind::WARP};
  t["redux.add.s32"] = {reduce<[](uint32_t a, uint32_t b) { return a + b; }>, Kind::WARP};
  t["redux.add.u32"] = t["redux.add.s32"];
  t["redux.min.s32"] = {reduce<[](int32_t a, int32_t b) { return std::min(a, b); }>, Kind::WARP};
  t["redux.max.s32"] = {reduce<[](int32_t a, int32_t b) { return std::max(a, b); }>, Kind::WARP};
  t["redux.min.u32"] = {reduce<[](uint32_t a, uint32_t b) { return std::min(a, b); }>, Kind::WARP};
  t["redux.max.u32"] = {reduce<[](uint32_t a, uint32_t b) { return std::max(a, b); }>, Kind::WARP};
  t["redux.and.b32"] = {reduce<[](uint32_t a, uint32_t b) { return a & b; }>, Kind::WARP};
  t["redux.or.b32"] = {reduce<[](uint32_t a, uint32_t b) { return a | b; }>, Kind::WARP};
  t["redux.xor.b32"] = {reduce<[](uint32_t a, uint32_t b) { return a ^ b; }>, Kind::WARP};
  t["activemask.b32"] = {[](Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
    for_lanes(mask, [&](int l) { w.slot(m.outs(i)[0])[l] = mask; });
  }};
  t["bar.warp"] = {[](Machine& m, Warp& w, const Instruction&, uint32_t mask) { m.barrier_of_warp(w, mask); },
                   Kind::WARP};

  t["mma.tf32.f32"] = {mma<Tf32, float>, Kind::WARP};
  t["mma.bf16.f32"] = {mma<Halves<bf16>, float>, Kind::WARP};
  t["mma.f16.f32"] = {mma<Halves<f16>, float>, Kind::WARP};
  t["mma.f16.f16"] = {mma<Halves<f16>, f16>, Kind::WARP};
  t["mma.s8.s32"] = {mma<Bytes<int8_t>, int32_t>, Kind::WARP};
  t["mma.u8.s32"] = {mma<Bytes<uint8_t>, int32_t>, Kind::WARP};
  t["mma.f64.f64"] = {mma_f64, Kind::WARP};
  t["wgmma.tf32"] = {wgmma<Tf32>, Kind::WARP};
  t["wgmma.bf16"] = {wgmma<Halves<bf16>>, Kind::WARP};
  t["wgmma.f16"] = {wgmma<Halves<f16>>, Kind::WARP};

  // machine.cpp does these itself.
  t["nop"] = {[](Machine&, Warp&, const Instruction&, uint32_t) {}};
  t["trap"] = {[](Machine& m, Warp& w, const Instruction& i, uint32_t mask) {
                 m.find(TRAP, w, std::countr_zero(mask), m.pc_of(i));
               },
               Kind::EXIT};
  t["exit"] = {t["nop"].run, Kind::EXIT};
  t["bra"] = {t["nop"].run, Kind::BRANCH};
  t["brx"] = {t["nop"].run, Kind::INDIRECT};
  t["bar"] = {t["nop"].run, Kind::BLOCK};
  return t;
}

}  // namespace

const std::map<std::string, Handler>& handlers() {
  static const Table table = all_handlers();
  return table;
}

}  // namespace ptx
