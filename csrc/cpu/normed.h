// A norm of a value and its tangents, row by row (csrc/normed.h; docs/math.md has the derivatives of a standardised
// row). Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
class NormedRows {
  using V = Vec<T>;

 public:
  // `sums`: of the weight's adjoint and of the bias's, [2, weights]
  NormedRows(const Normed& told, double* sums)
      : told_(told),
        sums_(sums),
        n_(told.n),
        room_(std::size_t((4 + 2 * told.S) * round_up(n_, V::kLanes))),
        share_(T(1) / T(told.n)) {}

  void run(const Range& rows) {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      if (told_.rows_alone) {
        told_.back() ? standardised_back(row) : standardised(row);
      } else {
        told_.back() ? scaled_back(row) : scaled(row);
      }
    }
  }

 private:
  const Normed& told_;
  double* sums_;
  const std::int64_t n_;
  std::vector<T> room_;
  const T share_;

  std::int64_t size() const { return told_.rows * n_; }
  static const T* in(const void* from, std::int64_t at) { return from ? static_cast<const T*>(from) + at : nullptr; }
  static T* out(void* to, std::int64_t at) { return to ? static_cast<T*>(to) + at : nullptr; }
  T* room(std::int64_t i) { return room_.data() + i * round_up(n_, V::kLanes); }

  // f(i, at) for each register of a row
  template <class F>
  SK_INLINE void each(F f) const {
    each_register<T>(n_, 0, 1, f);
  }
  template <class F>
  SK_INLINE T total(F f) const {
    V all(0.0);
    each([&](std::int64_t i, auto at) { all = all + f(i, at); });
    return sum(all);
  }
  SK_INLINE static V all_of(T x) { return V(double(x)); }

  // What is left of some numbers without their mean; lanes that are not there stay 0
  SK_INLINE void centre(const T* from, T* to) const {
    const T mean = share_ * total([&](std::int64_t i, auto at) { return at.load(from + i); });
    each([&](std::int64_t i, auto at) { at.store(at.load(from + i) - all_of(mean), to + i); });
  }
  SK_INLINE T dot(const T* a, const T* b) const {
    return total([&](std::int64_t i, auto at) { return at.load(a + i) * at.load(b + i); });
  }

  // The row standardised to `n`; its scale
  T standardise(const T* v, T* n) const {
    if (told_.centred) {
      centre(v, n);
    } else {
      std::copy(v, v + n_, n);
    }
    const T r = T(1) / std::sqrt(share_ * dot(n, n) + T(told_.eps));
    each([&](std::int64_t i, auto at) { at.store(at.load(n + i) * all_of(r), n + i); });
    return r;
  }

  // A tangent without its mean in e; the mean of n e
  T along(const T* d, const T* n, T* e) const {
    if (told_.centred) {
      centre(d, e);
    } else {
      std::copy(d, d + n_, e);
    }
    return share_ * dot(n, e);
  }

  void standardised(std::int64_t row) {
    const std::int64_t first = row * n_;
    const T *weight = in(told_.weight, 0), *bias = in(told_.bias, 0);
    T *n = room(0), *e = room(1), *y = out(told_.y, first);
    const T r = standardise(in(told_.v, first), n);
    each([&](std::int64_t i, auto at) {
      V made = at.load(n + i);
      if (weight) made = made * at.load(weight + i);
      if (bias) made = made + at.load(bias + i);
      at.store(made, y + i);
    });
    for (std::int64_t s = 0; s < told_.S; ++s) {
      const T mean = along(in(told_.d, s * size() + first), n, e);
      T* t = out(told_.t, s * size() + first);
      each([&](std::int64_t i, auto at) {
        const V made = all_of(r) * (at.load(e + i) - at.load(n + i) * all_of(mean));
        at.store(weight ? made * at.load(weight + i) : made, t + i);
      });
    }
  }

  // With n = r c, c = v - mean(v), and t = r (e - n m), e = d - mean(d), m = mean(n e); g and h are adjoints of n and
  // t:
  //     of e: r (h - n mean(h n));  of n: G = g - r (m h + mean(h n) e);  of c: r (G - n (mean(G n) + mean(h t)))
  void standardised_back(std::int64_t row) {
    const std::int64_t first = row * n_;
    const T* weight = in(told_.weight, 0);
    const T* bar_y = in(told_.bar_y, first);
    T *n = room(0), *e = room(1), *h = room(2), *G = room(3), *bar_v = out(told_.bar_v, first);
    const T r = standardise(in(told_.v, first), n);
    each([&](std::int64_t i, auto at) {
      const V bar = at.load(bar_y + i);
      at.store(weight ? bar * at.load(weight + i) : bar, G + i);
    });
    add(told_.bar_bias, 1, [&](std::int64_t i) { return bar_y[i]; });
    add(told_.bar_weight, 0, [&](std::int64_t i) { return bar_y[i] * n[i]; });
    T of_scale = 0;
    for (std::int64_t s = 0; s < told_.S; ++s) {
      const T m = along(in(told_.d, s * size() + first), n, e);
      const T* bar_t = in(told_.bar_t, s * size() + first);
      each([&](std::int64_t i, auto at) {
        const V bar = at.load(bar_t + i);
        at.store(weight ? bar * at.load(weight + i) : bar, h + i);
      });
      add(told_.bar_weight, 0, [&](std::int64_t i) { return bar_t[i] * r * (e[i] - n[i] * m); });
      const T hn = share_ * dot(h, n), he = share_ * dot(h, e);
      of_scale += r * (he - hn * m);
      T* bar_d = out(told_.bar_d, s * size() + first);
      each([&](std::int64_t i, auto at) {
        const V of_h = at.load(h + i), of_n = at.load(n + i);
        at.store(at.load(G + i) - all_of(r) * (all_of(m) * of_h + all_of(hn) * at.load(e + i)), G + i);
        if (bar_d) at.store(all_of(r) * (of_h - of_n * all_of(hn)), bar_d + i);
      });
      if (bar_d && told_.centred) centre(bar_d, bar_d);
    }
    const T owed = share_ * dot(G, n) + of_scale;
    each([&](std::int64_t i, auto at) {
      at.store(all_of(r) * (at.load(G + i) - at.load(n + i) * all_of(owed)), bar_v + i);
    });
    if (told_.centred) centre(bar_v, bar_v);
  }

  // To the sums of a weight, or a bias, if they are wanted
  template <class F>
  SK_INLINE void add(const void* wanted, int which, F f) {
    double* to = sums_ + which * n_;
    for (std::int64_t i = 0; wanted && i < n_; ++i) to[i] += double(f(i));
  }

  T of_channel(const void* from, std::int64_t row, T otherwise) const {
    return from ? *in(from, row % told_.channels) : otherwise;
  }

  void scaled(std::int64_t row) {
    const std::int64_t first = row * n_;
    const V scale = all_of(of_channel(told_.weight, row, T(1))), shift = all_of(of_channel(told_.bias, row, T(0)));
    const T *v = in(told_.v, first), *d = in(told_.d, first);
    T *y = out(told_.y, first), *t = out(told_.t, first);
    each([&](std::int64_t i, auto at) {
      at.store(at.load(v + i) * scale + shift, y + i);
      for (std::int64_t s = 0; s < told_.S; ++s) {
        at.store(at.load(d + s * size() + i) * scale, t + s * size() + i);
      }
    });
  }

  void scaled_back(std::int64_t row) {
    const std::int64_t first = row * n_, channel = row % told_.channels;
    const V scale = all_of(of_channel(told_.weight, row, T(1)));
    const T *v = in(told_.v, first), *d = in(told_.d, first);
    const T *bar_y = in(told_.bar_y, first), *bar_t = in(told_.bar_t, first);
    T *bar_v = out(told_.bar_v, first), *bar_d = out(told_.bar_d, first);
    V of_scale(0.0), of_shift(0.0);
    each([&](std::int64_t i, auto at) {
      const V bar = at.load(bar_y + i);
      of_shift = of_shift + bar;
      of_scale = of_scale + bar * at.load(v + i);
      at.store(bar * scale, bar_v + i);
      for (std::int64_t s = 0; s < told_.S; ++s) {
        const std::int64_t k = s * size() + i;
        const V along = at.load(bar_t + k);
        of_scale = of_scale + along * at.load(d + k);
        if (bar_d) at.store(along * scale, bar_d + k);
      }
    });
    sums_[channel] += double(sum(of_scale));
    sums_[told_.channels + channel] += double(sum(of_shift));
  }
};

template <class T>
void normed(const Normed& told, double* sums, int part, int parts) {
  NormedRows<T>(told, sums).run(Range(told.rows, part, parts));
}
