// Losses of one panel: sums of ρ and its slopes, for losses of one residual and for those of a sample's sums.
// `weight` multiplies a row's residuals, `step` is 1 if each of the n rows has its own weight and 0 if they share one.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// Pointwise: slopes times `factor` (one for each sample), sums of ρ added to `terms`.
template <class L, class T>
void pointwise(const T* prediction, const T* target, std::int64_t n, const T* factor, const T* weight,
               std::int64_t step, const double* parameters, T* slope, T* terms) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V total(0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V w = V(double(weight[i * step]));
      const Residual<V> r = L::call(V::load(prediction + j) - V::load(target + j), parameters);
      total = total + w * r.value;
      if (slope) (w * r.slope * V::load(factor + m)).store(slope + j);
    }
    (V::load(terms + m) + total).store(terms + m);
  }
}

// The sums [4][kPanel] of r², a², a·t and t² that a coupled loss is a function of; without a prediction, a is 0.
template <class T>
void add_sums(const T* prediction, const T* target, std::int64_t n, const T* weight, std::int64_t step, T* sums) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V rr(0.0), aa(0.0), at(0.0), tt(0.0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V w = V(double(weight[i * step])), t = V::load(target + j);
      const V a = prediction ? V::load(prediction + j) : V(0.0), r = a - t;
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
void coupled_slopes(const T* prediction, const T* target, std::int64_t n, const T* factor, const T* weight,
                    std::int64_t step, const T* partial, T* slope) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    const V f = V::load(factor + m), rr = V(2.0) * f * V::load(partial + m);
    const V aa = V(2.0) * f * V::load(partial + kPanel<T> + m), at = f * V::load(partial + 2 * kPanel<T> + m);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t j = i * kPanel<T> + m;
      const V a = V::load(prediction + j), t = V::load(target + j);
      (V(double(weight[i * step])) * (rr * (a - t) + aa * a + at * t)).store(slope + j);
    }
  }
}
