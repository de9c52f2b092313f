// Losses of one panel: sums of ρ and its slopes, for losses of one residual and for those of a sample's sums.
// A residual of weight 0 counts as 0 whatever its target, which may be NaN: it is selected, not multiplied.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// What multiplies ρ of the n rows of a panel: a weight of each row (step 1), one of all rows (0), or a panel of them;
// and `factor`, what multiplies the slopes of each sample, 0 where the sample's weight is.
template <class T>
struct Weights {
  const T* rows;
  std::int64_t step;
  bool of_each;
  const T* sample;  // [kPanel]
  const T* factor;  // [kPanel]

  SK_INLINE Vec<T> at(std::int64_t i) const {
    return of_each ? Vec<T>::load(rows + i * kPanel<T>) : Vec<T>(double(rows[i * step]));
  }
  SK_INLINE Vec<T> counted(Vec<T> a, Vec<T> w) const {
    return where(w * Vec<T>::load(sample) != Vec<T>(0.0), a, Vec<T>(0.0));
  }
};

// Pointwise: slopes times the factor, sums of ρ added to `terms`.
template <class L, class T>
void pointwise(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights,
               const double* parameters, T* slope, T* terms) {
  using V = Vec<T>;
  V total(0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = i * kPanel<T>;
    const V w = weights.at(i), r = weights.counted(V::load(prediction + j) - V::load(target + j), w);
    const Residual<V> rho = L::call(r, parameters);
    total = total + w * rho.value;
    if (slope) (w * rho.slope * V::load(weights.factor)).store(slope + j);
  }
  (V::load(terms) + total).store(terms);
}

// The same of a loss of what a head is a function of and of what is its target, which are not subtracted
template <class L, class T>
void likelihood(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights,
                const double* parameters, T* slope, T* terms) {
  using V = Vec<T>;
  V total(0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = i * kPanel<T>;
    const V w = weights.at(i), a = weights.counted(V::load(prediction + j), w);
    const Residual<V> rho = L::call(a, weights.counted(V::load(target + j), w), parameters);
    total = total + w * rho.value;
    if (slope) (w * rho.slope * V::load(weights.factor)).store(slope + j);
  }
  (V::load(terms) + total).store(terms);
}

// The same in double, for losses that couple: there no product of floats is infinite or 0.
template <class T>
struct Compared {
  using V = Vec<double>;
  V a, t, w;

  // Numbers i of kLanes samples from sample m of a panel on; without a prediction a is 0
  SK_INLINE Compared(const T* prediction, const T* target, const Weights<T>& weights, std::int64_t i, int m) {
    const std::int64_t j = i * kPanel<T> + m;
    w = weights.of_each ? load_wide(weights.rows + j) : V(double(weights.rows[i * weights.step]));
    const auto counts = w * load_wide(weights.sample + m) != V(0.0);
    a = prediction ? where(counts, load_wide(prediction + j), V(0.0)) : V(0.0);
    t = where(counts, load_wide(target + j), V(0.0));
  }
};

// The sums [5][kPanel] of r², a², a·t, t² and weights that a coupled loss is a function of
template <class T>
void add_sums(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights, double* sums) {
  using V = Vec<double>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V rr(0.0), aa(0.0), at(0.0), tt(0.0), ww(0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const Compared<T> c(prediction, target, weights, i, m);
      const V r = c.a - c.t, wa = c.w * c.a;
      rr = rr + c.w * r * r;
      aa = aa + wa * c.a;
      at = at + wa * c.t;
      tt = tt + c.w * c.t * c.t;
      ww = ww + c.w;
    }
    const V totals[5] = {rr, aa, at, tt, ww};
    for (int k = 0; k < 5; ++k) (V::load(sums + k * kPanel<T> + m) + totals[k]).store(sums + k * kPanel<T> + m);
  }
}

// ρ of the sums into `terms`, its partial derivatives [3][kPanel] into `partial`
template <class L, class T>
void couple(const double* sums, const double* parameters, double* partial, T* terms) {
  using V = Vec<double>;
  constexpr int kStride = kPanel<T>;
  const auto load = [&](int k, int m) { return V::load(sums + k * kStride + m); };
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    const Coupled<V> c = L::call(load(0, m), load(1, m), load(2, m), load(3, m), load(4, m), parameters);
    store_narrow(c.value, terms + m);
    c.rr.store(partial + m);
    c.aa.store(partial + kStride + m);
    c.at.store(partial + 2 * kStride + m);
  }
}

template <class T>
void coupled_slopes(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights,
                    const double* partial, T* slope) {
  using V = Vec<double>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    const V f = load_wide(weights.factor + m), rr = V(2.0) * f * V::load(partial + m);
    const V aa = V(2.0) * f * V::load(partial + kPanel<T> + m), at = f * V::load(partial + 2 * kPanel<T> + m);
    for (std::int64_t i = 0; i < n; ++i) {
      const Compared<T> c(prediction, target, weights, i, m);
      store_narrow(c.w * (rr * (c.a - c.t) + aa * c.a + at * c.t), slope + i * kPanel<T> + m);
    }
  }
}
