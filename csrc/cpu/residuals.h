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

  SK_INLINE Vec<T> at(std::int64_t i, int m) const {
    return of_each ? Vec<T>::load(rows + i * kPanel<T> + m) : Vec<T>(double(rows[i * step]));
  }
  SK_INLINE Vec<T> counted(Vec<T> a, Vec<T> w, int m) const {
    return where(w * Vec<T>::load(sample + m) != Vec<T>(0.0), a, Vec<T>(0.0));
  }
};

// Pointwise: slopes times the factor, sums of ρ added to `terms`.
template <class L, class T>
void pointwise(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights,
               const double* parameters, T* slope, T* terms) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V total(0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V w = weights.at(i, m), r = weights.counted(V::load(prediction + j) - V::load(target + j), w, m);
      const Residual<V> rho = L::call(r, parameters);
      total = total + w * rho.value;
      if (slope) (w * rho.slope * V::load(weights.factor + m)).store(slope + j);
    }
    (V::load(terms + m) + total).store(terms + m);
  }
}

// The sums [4][kPanel] of r², a², a·t and t² that a coupled loss is a function of; without a prediction, a is 0.
template <class T>
void add_sums(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights, T* sums) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V rr(0.0), aa(0.0), at(0.0), tt(0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V w = weights.at(i, m), t = weights.counted(V::load(target + j), w, m);
      const V a = prediction ? weights.counted(V::load(prediction + j), w, m) : V(0.0), r = a - t;
      rr = rr + w * r * r;
      aa = aa + w * a * a;
      at = at + w * a * t;
      tt = tt + w * t * t;
    }
    const V totals[4] = {rr, aa, at, tt};
    for (int k = 0; k < 4; ++k) (V::load(sums + k * kPanel<T> + m) + totals[k]).store(sums + k * kPanel<T> + m);
  }
}

// ρ of the sums into `terms`, its partial derivatives [3][kPanel] into `partial`
template <class L, class T>
void couple(const T* sums, const double* parameters, T* partial, T* terms) {
  using V = Vec<T>;
  constexpr int kStride = kPanel<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    const Coupled<V> c = L::call(V::load(sums + m), V::load(sums + kStride + m), V::load(sums + 2 * kStride + m),
                                 V::load(sums + 3 * kStride + m), parameters);
    c.value.store(terms + m);
    c.rr.store(partial + m);
    c.aa.store(partial + kStride + m);
    c.at.store(partial + 2 * kStride + m);
  }
}

template <class T>
void coupled_slopes(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights, const T* partial,
                    T* slope) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    const V f = V::load(weights.factor + m), rr = V(2.0) * f * V::load(partial + m);
    const V aa = V(2.0) * f * V::load(partial + kPanel<T> + m), at = f * V::load(partial + 2 * kPanel<T> + m);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V w = weights.at(i, m);
      const V a = weights.counted(V::load(prediction + j), w, m), t = weights.counted(V::load(target + j), w, m);
      (w * (rr * (a - t) + aa * a + at * t)).store(slope + j);
    }
  }
}
