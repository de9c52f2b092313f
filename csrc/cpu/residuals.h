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

// The sums [4][kPanel] of r², a², a·t and t² that a coupled loss is a function of; without a prediction, a is 0.
template <class T>
void add_sums(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights, T* sums) {
  using V = Vec<T>;
  V rr(0.0), aa(0.0), at(0.0), tt(0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = i * kPanel<T>;
    const V w = weights.at(i), t = weights.counted(V::load(target + j), w);
    const V a = prediction ? weights.counted(V::load(prediction + j), w) : V(0.0), r = a - t;
    rr = rr + w * r * r;
    aa = aa + w * a * a;
    at = at + w * a * t;
    tt = tt + w * t * t;
  }
  const V totals[4] = {rr, aa, at, tt};
  for (int k = 0; k < 4; ++k) (V::load(sums + k * kPanel<T>) + totals[k]).store(sums + k * kPanel<T>);
}

// ρ of the sums into `terms`, its partial derivatives [3][kPanel] into `partial`
template <class L, class T>
void couple(const T* sums, const double* parameters, T* partial, T* terms) {
  using V = Vec<T>;
  constexpr int kStride = kPanel<T>;
  const Coupled<V> c = L::call(V::load(sums), V::load(sums + kStride), V::load(sums + 2 * kStride),
                               V::load(sums + 3 * kStride), parameters);
  c.value.store(terms);
  c.rr.store(partial);
  c.aa.store(partial + kStride);
  c.at.store(partial + 2 * kStride);
}

template <class T>
void coupled_slopes(const T* prediction, const T* target, std::int64_t n, const Weights<T>& weights, const T* partial,
                    T* slope) {
  using V = Vec<T>;
  const V f = V::load(weights.factor), rr = V(2.0) * f * V::load(partial);
  const V aa = V(2.0) * f * V::load(partial + kPanel<T>), at = f * V::load(partial + 2 * kPanel<T>);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t j = i * kPanel<T>;
    const V w = weights.at(i);
    const V a = weights.counted(V::load(prediction + j), w), t = weights.counted(V::load(target + j), w);
    (w * (rr * (a - t) + aa * a + at * t)).store(slope + j);
  }
}
