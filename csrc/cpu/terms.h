// The terms of a step's loss, of one tile: targets of its values, derivatives and second derivatives, the residuals'
// sums, and their slopes, which are the adjoints of what was compared.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
T at(const Strided& a, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0, std::int64_t l = 0) {
  return static_cast<const T*>(a.data)[i * a.stride[0] + j * a.stride[1] + k * a.stride[2] + l * a.stride[3]];
}

// to[first + sample][column ... column + n] of `ld` columns, from panels [n] that are `next` apart
template <class T>
void store_columns(const T* panels, std::int64_t next, std::int64_t M, std::int64_t n, void* to, std::int64_t first,
                   std::int64_t ld, std::int64_t column) {
  if (!to) return;
  T* row = static_cast<T*>(to) + first * ld + column;
  for (std::int64_t m = 0; m < M; ++m, row += ld) {
    const T* from = panels + m / kPanel<T> * next + m % kPanel<T>;
    for (std::int64_t i = 0; i < n; ++i) row[i] = from[i * kPanel<T>];
  }
}

// Arrays of some streams: that of the first panel of the first one, or none, and how far it is to the next of each
template <class T>
struct Ends {
  T* data = nullptr;
  std::int64_t stream = 0, panel = 0;
  T* at(std::int64_t s, std::int64_t p) const { return data ? data + s * stream + p * panel : nullptr; }
};

// Directions, or cotangents, of some streams
template <class T>
struct Vectors {
  Ends<T> panels, rows;
  std::int64_t ld;
  const T* row(std::int64_t s, std::int64_t m) const { return rows.at(s, m / kPanel<T>) + m % kPanel<T> * ld; }
};

template <class T>
class Terms {
  using V = Vec<T>;

 public:
  Terms(const Step& step, const TermsRoom<T>& room) : step_(step), room_(room) {
    bool coupled = false;
    predicted_ = false;
    for (int term = 0; term < step.count_terms(); ++term) {
      if (step.residuals != Residuals::kLoss || !is_coupled(step.loss[term])) continue;
      coupled = true;
      predicted_ = predicted_ || with_coupled(step.loss[term].row, [](auto l) { return decltype(l)::kPredicted; });
    }
    two_sweeps_ = coupled && step.gradients;
    for (std::int64_t o = 0; o < step.O; ++o) {
      room.output_weight[o] = step.output_weight.data ? at<T>(step.output_weight, o) : T(1);
    }
    for (int term = 0; term < kMaxTerms; ++term) room.totals[term] = 0;
  }

  // All of a tile: `sweep` goes through all of its derivatives. A coupled loss needs a sample's sums before it has
  // slopes: a first sweep then only measures them, without predictions if the loss asks for the target's alone.
  template <class Sweep>
  void sweeps(std::int64_t first, std::int64_t count, Sweep sweep) {
    first_ = first;
    M_ = count;
    for (T* sums : room_.terms) std::fill_n(sums, size(1), T(0));
    for (int left = two_sweeps_; left >= 0; --left) {
      measuring_ = left;
      for (int term = 0; term < step_.count_terms(); ++term) std::fill_n(room_.sums[term], size(5), 0.0);
      sweep();
      for (int term = 0; term < step_.count_terms(); ++term) finish_coupled(term);
    }
    if (step_.total && step_.residuals != Residuals::kNone) store();
  }

  bool measuring() const { return measuring_; }
  bool predicting() const { return !measuring_ || predicted_; }
  bool backward() const { return step_.gradients && step_.residuals != Residuals::kNone && !measuring_; }

  // n numbers, from number `first` on, of values, or of the derivatives from p on along so many directions, or
  // cotangents, v: their predictions are compared with their targets, and have the slopes as adjoints
  void compare(Term term, std::int64_t p, std::int64_t streams, std::int64_t first, std::int64_t n, const Vectors<T>& v,
               const Ends<T>& prediction, const Ends<T>& slope) {
    streams_ = streams;
    load_target(term, p, first, n, v);
    for (std::int64_t s = 0; s < streams; ++s) adjoint(term, s, prediction, n, weights(term, p + s, first, n), slope);
  }

 private:
  const Step& step_;
  const TermsRoom<T>& room_;
  std::int64_t first_ = 0, M_ = 0, streams_ = 1;
  bool two_sweeps_, predicted_, measuring_ = false;

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t size(std::int64_t n) const { return panels() * n * kPanel<T>; }

  bool by_cotangents() const { return step_.projection == Projection::kCotangents; }

  // Targets of the streams at hand, 0 where there are none: as they are, or D f(x)[v], J_fᵀ u, D² f(x)[v, v]
  void load_target(Term term, std::int64_t p, std::int64_t first, std::int64_t n, const Vectors<T>& vectors) {
    const Target& target = step_.target[term];
    const auto& stride = target.data.stride;
    const T* data = static_cast<const T*>(target.data.data);
    const auto load = [&](auto value) {
      load_numbers(target.kind != TargetKind::kNone, streams_, n, room_.target, value);
    };
    if (term == kValue || target.kind != TargetKind::kDense) {
      const int k = term != kValue;
      const T* first_row = data + k * p * stride[0] + first_ * stride[k] + first * stride[k + 1];
      const std::int64_t stream = k * stride[0], sample = stride[k], apart = stride[k + 1];
      return load([=](std::int64_t s, std::int64_t m) {
        const T* row = first_row + s * stream + m * sample;
        return [=](std::int64_t i) { return row[i * apart]; };
      });
    }
    if (term == kFirst && !by_cotangents()) {
      if (step_.W < V::kLanes) return narrow_target(first, n, vectors);
      if (streams_ > 2 && (stride[1] == 1 || stride[2] == 1)) return wide_target(first, n, vectors);
    }
    load([&](std::int64_t s, std::int64_t m) {
      const T *v = vectors.row(s, m), *rows = data + (first_ + m) * stride[0] + first * stride[1];
      return [=, &stride, O = step_.O, W = step_.W](std::int64_t i) {
        if (by_cotangents()) return dot(rows + i * stride[2], stride[1], v, O);
        if (term == kFirst) return dot(rows + i * stride[1], stride[2], v, W);
        T total = 0;
        for (std::int64_t d = 0; d < W; ++d) {
          total += v[d] * dot(rows + i * stride[1] + d * stride[2], stride[3], v, W);
        }
        return total;
      };
    });
  }

  // n numbers value(s, m)(i) of each sample of so many streams. A sample's target is in the cache for all of them.
  template <class F>
  void load_numbers(bool there, std::int64_t streams, std::int64_t n, T* panels_of, F value) {
    for (std::int64_t m = 0; m < size(1); ++m) {
      T* to = panels_of + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t s = 0; s < streams; ++s, to += size(n)) {
        if (!there || m >= M_) {
          for (std::int64_t i = 0; i < n; ++i) to[i * kPanel<T>] = 0;
          continue;
        }
        const auto number = value(s, m);
        for (std::int64_t i = 0; i < n; ++i) to[i * kPanel<T>] = number(i);
      }
    }
  }

  // Weights of rows as those of a panel have them (residuals.h), or panels of weights
  struct Rows {
    const T* data;
    std::int64_t step;
    bool of_each;
  };

  // Of n numbers of derivative p from number `first` on: those of outputs, of which a cotangent may be one
  Rows weights(Term term, std::int64_t p, std::int64_t first, std::int64_t n) {
    const bool of_one = term != kValue && by_cotangents();
    const bool basis = step_.directions.distribution == Distribution::kBasis;
    const Rows outputs{room_.output_weight + (of_one ? (basis ? p : 0) : first), !of_one, false};
    if (term == kValue || !step_.derivative_weight.data) return outputs;
    load_numbers(true, 1, n, room_.weight, [&](std::int64_t, std::int64_t m) {
      return [&, m](std::int64_t i) {
        return outputs.data[i * outputs.step] * at<T>(step_.derivative_weight, p, first_ + m, first + i);
      };
    });
    return {room_.weight, 0, true};
  }

  // The last of whole registers overlaps the one before: there it counts nothing
  static T dot(const T* a, std::int64_t stride, const T* b, std::int64_t n) {
    T total = 0;
    if (stride != 1 || n < V::kLanes) {
      for (std::int64_t i = 0; i < n; ++i) total += a[i * stride] * b[i];
      return total;
    }
    V lanes(0.0);
    std::int64_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) lanes = lanes + V::load(a + i) * V::load(b + i);
    const std::int64_t back = n - V::kLanes;
    const V last = V::load(a + back) * V::load(b + back);
    return sum(lanes + where(V::numbers() > V(double(i - back) - 0.5), last, V(0.0)));
  }

  // n outputs of D f(x)[v] along many directions: of each sample the product of its Jacobian and a panel of them
  void wide_target(std::int64_t first, std::int64_t n, const Vectors<T>& vectors) {
    const Strided& from = step_.target[kFirst].data;
    T *across = room_.across, *along = room_.along;
    std::fill_n(room_.target, streams_ * size(n), T(0));
    for (std::int64_t m = 0; m < M_; ++m) {
      const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0] + first * from.stride[1];
      const Matrix<T> jacobian{rows, n, step_.W, from.stride[1], from.stride[2], false};
      T* to = room_.target + m / kPanel<T> * n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t s = 0; s < streams_; s += kPanel<T>) {
        const std::int64_t some = std::min<std::int64_t>(streams_ - s, kPanel<T>);
        const T* v = vectors.row(s, m);
        for (std::int64_t d = 0; d < step_.W; d += kPanel<T>) {
          transpose_square(v + d, vectors.rows.stream, some, across + d * kPanel<T>, kPanel<T>);
        }
        product<T>(jacobian, step_.W, across, 1, nullptr, along, [](auto...) {});
        for (std::int64_t i = 0; i < some; ++i, to += size(n)) {
          for (std::int64_t o = 0; o < n * kPanel<T>; o += kPanel<T>) to[o] = along[o + i];
        }
      }
    }
  }

  // The same of fewer inputs than a register has lanes, with samples along it: an output's columns are transposed once
  void narrow_target(std::int64_t first, std::int64_t n, const Vectors<T>& vectors) {
    const Strided& from = step_.target[kFirst].data;
    const std::int64_t W = step_.W;
    T columns[V::kLanes * kPanel<T>];
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      const std::int64_t m = panel * kPanel<T>, samples = std::min<std::int64_t>(M_ - m, kPanel<T>);
      for (std::int64_t o = 0; o < n; ++o) {
        const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0] + (first + o) * from.stride[1];
        for (std::int64_t d = 0; d < W; ++d) {
          T* column = columns + d * kPanel<T>;
          for (std::int64_t i = 0; i < samples; ++i) column[i] = rows[i * from.stride[0] + d * from.stride[2]];
          for (std::int64_t i = samples; i < kPanel<T>; ++i) column[i] = 0;
        }
        for (std::int64_t s = 0; s < streams_; ++s) {
          const T* v = vectors.panels.at(s, panel);
          V total(0.0);
          for (std::int64_t d = 0; d < W * kPanel<T>; d += kPanel<T>)
            total = total + V::load(columns + d) * V::load(v + d);
          total.store(room_.target + s * size(n) + m * n + o * kPanel<T>);
        }
      }
    }
  }

  // The adjoint of n numbers of stream s into `slope`, if gradients are wanted: a loss's slopes, which also adds to its
  // sums, or the cotangents themselves
  void adjoint(Term term, std::int64_t s, const Ends<T>& prediction, std::int64_t n, const Rows& rows,
               const Ends<T>& slope) {
    const Formula& loss = step_.loss[term];
    const bool given = step_.residuals == Residuals::kCotangents || step_.target[term].kind == TargetKind::kNone;
    const bool coupled = is_coupled(loss), predicted = predicting() || term == kValue;
    if (measuring_ && (given || !coupled)) return;
    const T whole = T(step_.weight[term] * step_.share[term]);
    T sample[kPanel<T>], factor[kPanel<T>];
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      const T *target = room_.target + s * size(n) + panel * n * kPanel<T>, *found = prediction.at(s, panel);
      T* to = step_.gradients ? slope.at(s, panel) : nullptr;
      if (given) {
        if (to) std::copy_n(target, n * kPanel<T>, to);
        continue;
      }
      if (to && step_.weight[term] == 0) {  // its target may be NaN
        std::fill_n(to, n * kPanel<T>, T(0));
        to = nullptr;
      }
      for (std::int64_t i = 0, m = panel * kPanel<T>; i < kPanel<T>; ++i, ++m) {
        sample[i] = m < M_ ? sample_weight(term, m) : T(0);
        factor[i] = whole * sample[i];
      }
      const std::int64_t of_panel = rows.of_each ? panel * n * kPanel<T> : 0;
      const Weights<T> weight{rows.data + of_panel, rows.step, rows.of_each, sample, factor};
      if (!coupled) {
        const auto run = is_likelihood(loss)
                             ? with_likelihood(loss.row, [](auto l) { return &likelihood<decltype(l), T>; })
                             : with_loss(loss.row, [](auto l) { return &pointwise<decltype(l), T>; });
        run(found, target, n, weight, loss.parameters, to, room_.terms[term] + panel * kPanel<T>);
        continue;
      }
      add_sums(predicted ? found : nullptr, target, n, weight, room_.sums[term] + 5 * panel * kPanel<T>);
      if (measuring_ || !to) continue;
      coupled_slopes(found, target, n, weight, room_.partial[term] + 3 * panel * kPanel<T>, to);
    }
  }

  void finish_coupled(int term) {
    const Formula& loss = step_.loss[term];
    if (step_.residuals != Residuals::kLoss || !is_coupled(loss)) return;
    const auto run = with_coupled(loss.row, [](auto l) { return &couple<decltype(l), T>; });
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      run(room_.sums[term] + 5 * panel * kPanel<T>, loss.parameters, room_.partial[term] + 3 * panel * kPanel<T>,
          room_.terms[term] + panel * kPanel<T>);
    }
  }

  T sample_weight(int term, std::int64_t m) const {
    return step_.sample_weight.data ? at<T>(step_.sample_weight, term != kValue, first_ + m) : T(1);
  }

  void store() {
    for (std::int64_t m = 0; m < M_; ++m) {
      double loss = 0;
      for (int term = 0; term < step_.count_terms(); ++term) {
        const double sum = double(room_.terms[term][m]) * double(sample_weight(term, m));
        if (step_.weight[term] != 0) loss += step_.weight[term] * step_.share[term] * sum;
        if (step_.per_sample) {
          static_cast<T*>(step_.terms)[term * step_.N + first_ + m] = T(step_.share[term] * sum);
        }
        room_.totals[term] += sum;
      }
      if (step_.per_sample) static_cast<T*>(step_.total)[first_ + m] = T(loss);
    }
  }
};
