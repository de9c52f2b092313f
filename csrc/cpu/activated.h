// An activation of a value and its tangents, number by number (csrc/activated.h).
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// A register of numbers of which only some may be there, the others 0.
template <class T>
struct Some {
  std::int64_t count;
  Vec<T> load(const T* from) const {
    T all[Vec<T>::kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) all[i] = from[i];
    return Vec<T>::load(all);
  }
  void store(Vec<T> v, T* to) const {
    for (std::int64_t i = 0; i < count; ++i) to[i] = v.v[i];
  }
};
template <class T>
struct All {
  SK_INLINE Vec<T> load(const T* from) const { return Vec<T>::load(from); }
  SK_INLINE void store(Vec<T> v, T* to) const { v.store(to); }
};

// work(i, whole or some) for each register of a part of n numbers
template <class T, class F>
SK_INLINE void each_register(std::int64_t n, int part, int parts, F work) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const Range mine((n + kLanes - 1) / kLanes, part, parts);
  for (std::int64_t k = mine.begin; k < mine.end; ++k) {
    const std::int64_t i = k * kLanes;
    if (i + kLanes <= n) {
      work(i, All<T>{});
    } else {
      work(i, Some<T>{n - i});
    }
  }
}

template <class T, class A>
void activate_pair(const Activated& a, const double* parameters, int part, int parts) {
  const auto in = [](const void* from) { return static_cast<const T*>(from); };
  const auto out = [](void* to) { return static_cast<T*>(to); };
  const T *z = in(a.z), *d = in(a.d);
  T *y = out(a.y), *t = out(a.t), *slopes = out(a.slopes);
  each_register<T>(a.n, part, parts, [&](std::int64_t i, auto at) {
    const auto s = A::call(at.load(z + i), parameters);
    at.store(s.value, y + i);
    for (std::int64_t k = 0; k < a.S; ++k) at.store(s.d1 * at.load(d + k * a.n + i), t + k * a.n + i);
    if (!slopes) return;
    at.store(s.d1, slopes + i);
    if (A::kCurved) at.store(s.d2, slopes + a.n + i);
  });
}

template <class T, bool Curved>
void activate_back(const Activated& a, int part, int parts) {
  const auto in = [](const void* from) { return static_cast<const T*>(from); };
  const auto out = [](void* to) { return static_cast<T*>(to); };
  const T *d = in(a.d), *bar_y = in(a.bar_y), *bar_t = in(a.bar_t), *slopes = in(a.slopes);
  T *bar_z = out(a.bar_z), *bar_d = out(a.bar_d);
  each_register<T>(a.n, part, parts, [&](std::int64_t i, auto at) {
    using V = Vec<T>;
    const V d1 = at.load(slopes + i);
    V bent(0.0);
    for (std::int64_t k = 0; k < a.S; ++k) {
      const V bar = at.load(bar_t + k * a.n + i);
      if (Curved) bent = bent + bar * at.load(d + k * a.n + i);
      if (bar_d) at.store(d1 * bar, bar_d + k * a.n + i);
    }
    V bar(0.0);
    if (bar_y) bar = d1 * at.load(bar_y + i);
    if (Curved) bar = bar + at.load(slopes + a.n + i) * bent;
    at.store(bar, bar_z + i);
  });
}

// Of a value alone: y and its slope; or σ' times the adjoint of y and σ'' times that of the slope
template <class T, class A>
void activate_alone(const Activated& a, const double* parameters, int part, int parts) {
  const auto in = [](const void* from) { return static_cast<const T*>(from); };
  const auto out = [](void* to) { return static_cast<T*>(to); };
  const T *z = in(a.z), *bar_y = in(a.bar_y), *bar_slope = in(a.bar_slope);
  T *y = out(a.y), *slope = out(a.slopes), *bar_z = out(a.bar_z);
  each_register<T>(a.n, part, parts, [&](std::int64_t i, auto at) {
    const auto s = A::call(at.load(z + i), parameters);
    if (!bar_z) {
      at.store(s.value, y + i);
      return at.store(s.d1, slope + i);
    }
    Vec<T> bar(0.0);
    if (bar_y) bar = s.d1 * at.load(bar_y + i);
    if (bar_slope && A::kCurved) bar = bar + s.d2 * at.load(bar_slope + i);
    at.store(bar, bar_z + i);
  });
}

template <class T>
void activated(const Activated& a, int part, int parts) {
  with_activation(a.activation.row, [&](auto row) {
    using A = decltype(row);
    if (a.alone) {
      with_usual<A>(a.activation.parameters, [&](const double* usual) { activate_alone<T, A>(a, usual, part, parts); });
    } else if (a.back()) {
      activate_back<T, A::kCurved>(a, part, parts);
    } else {
      with_usual<A>(a.activation.parameters, [&](const double* usual) { activate_pair<T, A>(a, usual, part, parts); });
    }
  });
}
