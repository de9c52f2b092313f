// One tile of a Sobolev step: values forward; the derivatives, each forward, to its residual and back (docs/math.md,
// section 3); the residual of the values, and values back.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
T at(const Strided& a, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0, std::int64_t l = 0) {
  return static_cast<const T*>(a.data)[i * a.stride[0] + j * a.stride[1] + k * a.stride[2] + l * a.stride[3]];
}

template <class T>
class Tile : private Heads<T> {
  using Base = Streams<T>;
  using V = Vec<T>;
  using Base::first_;
  using Base::last;
  using Base::M_;
  using Base::panels;
  using Base::shared_;
  using Base::size;
  using Base::step_;
  using Base::streams_;
  using Base::workspace_;
  using Heads<T>::tangents;
  using Heads<T>::values;

 public:
  Tile(const Step& step, const Shared<T>& shared, const Private<T>& workspace) : Heads<T>(step, shared, workspace) {
    bool predicted = false, coupled = false;
    for (int term = 0; term < step.count_terms(); ++term) {
      if (step.residuals != Residuals::kLoss || !is_coupled(step.loss[term])) continue;
      coupled = true;
      predicted = predicted || with_coupled(step.loss[term].row, [](auto l) { return decltype(l)::kPredicted; });
    }
    two_sweeps_ = coupled && step.gradients;
    predicted_ = predicted;
  }

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    for (int term = 0; term < kMaxTerms; ++term) Base::fill(workspace_.terms[term], size(1), T(0));
    for (std::int64_t l = 0; l <= last(); ++l) {
      if (workspace_.q[l]) Base::fill(workspace_.q[l], size(step_.layers[l].n_out), T(0));
    }
    if (step_.headed()) Base::fill(workspace_.head_q, size(step_.O), T(0));
    load_rows(step_.x, first_, M_, step_.D, workspace_.ld_x, workspace_.x_rows, workspace_.x);
    step_.in_lockstep() ? forward() : forward_values();
    this->store_panels(values(), step_.y, 0, step_.O);
    if (two_sweeps_) {
      measuring_ = true;
      sweep();
      measuring_ = false;
    }
    sweep();
    if (step_.residuals == Residuals::kNone) return;
    if (step_.gradients) step_.in_lockstep() ? this->backward_in_lockstep() : this->value_backward();
    if (step_.total) store_terms();
  }

 private:
  // A coupled loss needs a sample's sums before it has slopes: a first sweep then only measures them, without
  // predictions if the loss asks for the target's alone.
  bool two_sweeps_ = false, predicted_ = true, measuring_ = false;

  bool predicting() const { return !measuring_ || predicted_; }
  bool backward() const { return step_.gradients && step_.residuals != Residuals::kNone && !measuring_; }

  void sweep() {
    for (int term = 0; term < step_.count_terms(); ++term) std::fill_n(workspace_.sums[term], size(5), 0.0);
    if (step_.in_lockstep()) {
      if (step_.residuals != Residuals::kNone) slopes();
    } else if (step_.projection == Projection::kCotangents || step_.side == Side::kTangents) {
      for (std::int64_t p = 0; p < step_.P; p += step_.group) {
        streams_ = std::min(step_.group, step_.P - p);
        step_.projection == Projection::kCotangents ? by_cotangents(p) : by_tangents(p);
      }
      streams_ = 1;
    } else {
      for (std::int64_t o = 0; step_.P && o < step_.O; ++o) by_gradient(o);
    }
    if (step_.residuals == Residuals::kNone) return;
    load_plain(kValue, step_.O);
    const bool likely = step_.residuals == Residuals::kLoss && is_likelihood(step_.loss[kValue]);
    adjoint(kValue, 0, likely ? workspace_.head_a : values(), step_.O, {shared_.output_weight, 1, false},
            workspace_.z_of[kValue][last()]);
    if (step_.headed() && backward()) this->head_backward(likely);
    for (int term = 0; term < step_.count_terms(); ++term) finish_coupled(term);
  }

  void forward_values() {
    this->value_forward();
    if (step_.headed()) this->head_values();
  }

  // Values and the tangents of all directions
  void forward() {
    streams_ = step_.P;
    for (std::int64_t p = 0; p < step_.P; ++p) direction(p, p);
    this->forward_in_lockstep();
    if (step_.headed()) {
      this->head_values();
      this->head_tangents();
    }
    store_derivatives(tangents(), step_.derivatives, 0, step_.O);
    streams_ = 1;
  }

  // Adjoints of all tangents
  void slopes() {
    streams_ = step_.P;
    tangent_target(0, 0, step_.O);
    tangent_adjoints(kFirst, 0, tangents(), workspace_.z_of[kFirst][last()]);
    streams_ = 1;
  }

  // Directions from p on, side by side: their tangents, and at order 2 their second derivatives, through the layers and
  // their adjoints back
  void by_tangents(std::int64_t p) {
    for (std::int64_t s = 0; s < streams_; ++s) direction(p + s, s);
    if (predicting()) {
      this->tangent_forward();
      if (step_.headed()) this->head_tangents();
      store_derivatives(tangents(), step_.derivatives, p, step_.O);
      if (step_.order == 2) {
        this->second_forward();
        store_derivatives(workspace_.second[last()], step_.second, p, step_.O);
      }
    }
    if (step_.residuals == Residuals::kNone) return;
    if (step_.order == 2) {
      second_target(p);
      tangent_adjoints(kSecond, p, workspace_.second[last()], workspace_.a2[last()]);
      if (backward()) this->second_backward();
    }
    tangent_target(p, 0, step_.O);
    tangent_adjoints(kFirst, p, tangents(), workspace_.z_of[kFirst][last()]);
    if (backward()) this->tangent_backward(p);
  }

  void tangent_adjoints(Term term, std::int64_t p, const T* prediction, T* slope) {
    for (std::int64_t s = 0; s < streams_; ++s) {
      adjoint(term, s, prediction, step_.O, weights(p + s, 0, step_.O, shared_.output_weight, 1), slope);
    }
    if (!step_.headed() || !backward()) return;
    this->head_owes(workspace_.tangent[last()], slope);
    this->head_pulls(slope, slope);
  }

  void store_derivatives(const T* streams, void* to, std::int64_t p, std::int64_t n) {
    for (std::int64_t s = 0; s < streams_; ++s) this->store_panels(streams + s * size(n), to, (p + s) * step_.N, n);
  }

  // Cotangents u from r on, side by side: the gradients Jᵀu, and their adjoints back
  void by_cotangents(std::int64_t r) {
    for (std::int64_t s = 0; s < streams_; ++s) {
      drawn(r + s, step_.O, workspace_.ld_u, row_of(workspace_.u_rows, workspace_.ld_u, s, 0),
            workspace_.u + s * size(step_.O));
    }
    if (step_.headed()) this->head_seeds();
    if (predicting()) {
      this->output_gradient();
      store_derivatives(workspace_.gradient, step_.derivatives, r, step_.W);
    }
    if (step_.residuals == Residuals::kNone) return;
    const bool basis = step_.directions.distribution == Distribution::kBasis;
    gradient_target(r);
    for (std::int64_t s = 0; s < streams_; ++s) {
      const Rows weight = weights(r + s, 0, step_.W, shared_.output_weight + (basis ? r + s : 0), 0);
      adjoint(kFirst, s, workspace_.gradient, step_.W, weight, workspace_.g_bar);
    }
    if (!backward()) return;
    this->gradient_backward();
    if (step_.headed()) this->head_owes(workspace_.tangent[last()], workspace_.head_tangent);
    if (step_.headed() && step_.dgiven) this->head_tangents();
    store_derivatives(tangents(), step_.dgiven, r, step_.O);
  }

  // One output: its gradient g, whose projections g·v are the tangents of all directions; their slopes make its adjoint
  void by_gradient(std::int64_t o) {
    for (std::int64_t i = 0; i < size(step_.O); ++i) {
      workspace_.u[i] = i % (step_.O * kPanel<T>) / kPanel<T> == o ? T(1) : T(0);
    }
    if (step_.headed()) this->head_seeds();
    if (predicting()) this->output_gradient();
    for (std::int64_t p = 0; p < step_.P; ++p) {
      direction(p, 0);
      T* projected = workspace_.tangent[last()];
      for_gradient([&](std::int64_t i, std::int64_t m) {
        V total(0.0);
        for (std::int64_t j = i; j < i + step_.W * kPanel<T>; j += kPanel<T>) {
          total = total + V::load(workspace_.gradient + j) * V::load(workspace_.v + j);
        }
        total.store(projected + m);
      });
      this->store_columns(projected, step_.derivatives, p * step_.N, step_.O, o, 1);
      if (step_.residuals == Residuals::kNone) continue;
      tangent_target(p, o, 1);
      adjoint(kFirst, 0, projected, 1, weights(p, o, 1, shared_.output_weight + o, 0), workspace_.slope);
      if (!backward()) continue;
      for_gradient([&](std::int64_t i, std::int64_t m) {
        const V slope = V::load(workspace_.slope + m);
        for (std::int64_t j = i; j < i + step_.W * kPanel<T>; j += kPanel<T>) {
          const V along = slope * V::load(workspace_.v + j);
          (p ? V::load(workspace_.g_bar + j) + along : along).store(workspace_.g_bar + j);
        }
      });
    }
    if (!backward()) return;
    this->gradient_backward();
    if (step_.headed()) this->head_owes(workspace_.tangent[last()], workspace_.head_tangent);
  }

  // f(first number of a panel in an array [W], and in one [1])
  template <class F>
  void for_gradient(F f) {
    for (std::int64_t m = 0; m < size(1); m += kPanel<T>) f(m * step_.W, m);
  }

  // Direction or cotangent p of n numbers, given or drawn
  void drawn(std::int64_t p, std::int64_t n, std::int64_t ld, T* rows, T* panels_of) {
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      T* frame = workspace_.frames ? workspace_.frames + panel * step_.P * n * kPanel<T> : nullptr;
      const std::int64_t begin = panel * kPanel<T>, samples = std::min<std::int64_t>(kPanel<T>, M_ - begin);
      load_vector(step_.directions, first_ + begin, samples, p, n, ld, rows + begin * ld, panels_of + begin * n, frame);
    }
  }

  // Direction p as that of stream s
  void direction(std::int64_t p, std::int64_t s) {
    drawn(p, step_.W, workspace_.ld_v, row_of(workspace_.v_rows, workspace_.ld_v, s, 0),
          workspace_.v + s * size(step_.W));
  }

  // Of a sample, in rows of all streams
  T* row_of(T* rows, std::int64_t ld, std::int64_t s, std::int64_t m) const { return rows + (s * size(1) + m) * ld; }

  // The numbers of a target from `begin` on, `apart` from each other
  auto numbers(Term term, std::int64_t begin, std::int64_t apart) const {
    const T* data = static_cast<const T*>(step_.target[term].data.data) + begin;
    return [=](std::int64_t i) { return data[i * apart]; };
  }

  // Of a projected target, n of each sample from `first` on, of the derivatives from p on
  void load_projected(Term term, std::int64_t n, std::int64_t p, std::int64_t first = 0) {
    const auto& stride = step_.target[term].data.stride;
    load_target(term, n, [&](std::int64_t s, std::int64_t m) {
      return numbers(term, (p + s) * stride[0] + (first_ + m) * stride[1] + first * stride[2], stride[2]);
    });
  }

  // Of a target [N, n]
  void load_plain(Term term, std::int64_t n) {
    const auto& stride = step_.target[term].data.stride;
    load_target(term, n, [&](auto, std::int64_t m) { return numbers(term, (first_ + m) * stride[0], stride[1]); });
  }

  // n numbers value(s, m)(i) of each sample of the streams at hand; 0 where there is no target. A sample's target is
  // in the cache for all of them.
  template <class F>
  void load_target(Term term, std::int64_t n, F value) {
    load_numbers(step_.target[term].kind != TargetKind::kNone, streams_, n, workspace_.target, value);
  }

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

  // Of n numbers of derivative p from number `first` on, whose rows have weights of their own (step 1) or one (0)
  Rows weights(std::int64_t p, std::int64_t first, std::int64_t n, const T* rows, std::int64_t step) {
    if (!step_.derivative_weight.data) return {rows, step, false};
    load_numbers(true, 1, n, workspace_.weight, [&](std::int64_t, std::int64_t m) {
      return
          [&, m](std::int64_t i) { return rows[i * step] * at<T>(step_.derivative_weight, p, first_ + m, first + i); };
    });
    return {workspace_.weight, 0, true};
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

  // n outputs of D f(x)[v] from output `first` on, of the directions from p on
  void tangent_target(std::int64_t p, std::int64_t first, std::int64_t n) {
    if (step_.target[kFirst].kind == TargetKind::kProjected) return load_projected(kFirst, n, p, first);
    const Strided from = step_.target[kFirst].data;
    if (step_.target[kFirst].kind == TargetKind::kDense) {
      if (step_.W < V::kLanes) return narrow_target(first, n);
      if (streams_ > 2 && (from.stride[1] == 1 || from.stride[2] == 1)) return wide_target(first, n);
    }
    load_target(kFirst, n, [&](std::int64_t s, std::int64_t m) {
      const T* v = row_of(workspace_.v_rows, workspace_.ld_v, s, m);
      const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0] + first * from.stride[1];
      return [=, W = step_.W](std::int64_t o) { return dot(rows + o * from.stride[1], from.stride[2], v, W); };
    });
  }

  // The same along many directions: of each sample the product of its Jacobian and a panel of them
  void wide_target(std::int64_t first, std::int64_t n) {
    const Strided& from = step_.target[kFirst].data;
    T *across = workspace_.across, *along = workspace_.along;
    Base::fill(workspace_.target, streams_ * size(n), T(0));
    for (std::int64_t m = 0; m < M_; ++m) {
      const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0] + first * from.stride[1];
      const Matrix<T> jacobian{rows, n, step_.W, from.stride[1], from.stride[2], false};
      T* to = workspace_.target + m / kPanel<T> * n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t s = 0; s < streams_; s += kPanel<T>) {
        const std::int64_t some = std::min<std::int64_t>(streams_ - s, kPanel<T>);
        const T* v = row_of(workspace_.v_rows, workspace_.ld_v, s, m);
        for (std::int64_t d = 0; d < step_.W; d += kPanel<T>) {
          transpose_square(v + d, size(1) * workspace_.ld_v, some, across + d * kPanel<T>, kPanel<T>);
        }
        product<T>(jacobian, step_.W, across, 1, nullptr, along, [](auto...) {});
        for (std::int64_t i = 0; i < some; ++i, to += size(n)) {
          for (std::int64_t o = 0; o < n * kPanel<T>; o += kPanel<T>) to[o] = along[o + i];
        }
      }
    }
  }

  // The same of fewer inputs than a register has lanes, with samples along it: an output's columns are transposed once
  void narrow_target(std::int64_t first, std::int64_t n) {
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
          const T* v = workspace_.v + s * size(W) + m * W;
          V total(0.0);
          for (std::int64_t d = 0; d < W * kPanel<T>; d += kPanel<T>)
            total = total + V::load(columns + d) * V::load(v + d);
          total.store(workspace_.target + s * size(n) + m * n + o * kPanel<T>);
        }
      }
    }
  }

  // J_fᵀ u, of the cotangents from r on
  void gradient_target(std::int64_t r) {
    if (step_.target[kFirst].kind == TargetKind::kProjected) return load_projected(kFirst, step_.W, r);
    const Strided from = step_.target[kFirst].data;
    load_target(kFirst, step_.W, [&](std::int64_t s, std::int64_t m) {
      const T* u = row_of(workspace_.u_rows, workspace_.ld_u, s, m);
      const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0];
      return [=, O = step_.O](std::int64_t d) {
        T total = 0;
        for (std::int64_t o = 0; o < O; ++o) total += u[o] * rows[o * from.stride[1] + d * from.stride[2]];
        return total;
      };
    });
  }

  // D² f(x)[v, v], of the directions from p on
  void second_target(std::int64_t p) {
    if (step_.target[kSecond].kind == TargetKind::kProjected) return load_projected(kSecond, step_.O, p);
    const Strided from = step_.target[kSecond].data;
    load_target(kSecond, step_.O, [&](std::int64_t s, std::int64_t m) {
      const T* v = row_of(workspace_.v_rows, workspace_.ld_v, s, m);
      const T* rows = static_cast<const T*>(from.data) + (first_ + m) * from.stride[0];
      return [=, W = step_.W](std::int64_t o) {
        const T* hessian = rows + o * from.stride[1];
        T total = 0;
        for (std::int64_t d = 0; d < W; ++d) {
          total += v[d] * dot(hessian + d * from.stride[2], from.stride[3], v, W);
        }
        return total;
      };
    });
  }

  // The adjoint of n numbers of stream s into `slope`: a loss's slopes, which also adds to its sums, or the cotangents
  // themselves
  void adjoint(Term term, std::int64_t s, const T* prediction, std::int64_t n, const Rows& rows, T* slope) {
    const T* targets = workspace_.target + s * size(n);
    prediction += s * size(n);
    slope = step_.gradients ? slope + s * size(n) : nullptr;
    if (step_.residuals == Residuals::kCotangents || step_.target[term].kind == TargetKind::kNone) {
      for (std::int64_t i = 0; slope && i < size(n); ++i) slope[i] = targets[i];
      return;
    }
    const Formula& loss = step_.loss[term];
    const bool coupled = is_coupled(loss);
    if (measuring_ && !coupled) return;
    if (slope && step_.weight[term] == 0) {  // its target may be NaN
      Base::fill(slope, size(n), T(0));
      slope = nullptr;
    }
    const T whole = T(step_.weight[term] * step_.share[term]);
    T sample[kPanel<T>], factor[kPanel<T>];
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      for (std::int64_t i = 0, m = panel * kPanel<T>; i < kPanel<T>; ++i, ++m) {
        sample[i] = m < M_ ? sample_weight(term, m) : T(0);
        factor[i] = whole * sample[i];
      }
      const std::int64_t at = panel * n * kPanel<T>;
      const Weights<T> weight{rows.data + (rows.of_each ? at : 0), rows.step, rows.of_each, sample, factor};
      const T* target = targets + at;
      T* to = slope ? slope + at : nullptr;
      if (!coupled) {
        const auto run = is_likelihood(loss)
                             ? with_likelihood(loss.row, [](auto l) { return &likelihood<decltype(l), T>; })
                             : with_loss(loss.row, [](auto l) { return &pointwise<decltype(l), T>; });
        run(prediction + at, target, n, weight, loss.parameters, to, workspace_.terms[term] + panel * kPanel<T>);
        continue;
      }
      const bool predicted = predicting() || term == kValue;
      add_sums(predicted ? prediction + at : nullptr, target, n, weight, workspace_.sums[term] + 5 * panel * kPanel<T>);
      if (measuring_ || !to) continue;
      coupled_slopes(prediction + at, target, n, weight, workspace_.partial[term] + 3 * panel * kPanel<T>, to);
    }
  }

  void finish_coupled(int term) {
    const Formula& loss = step_.loss[term];
    if (step_.residuals != Residuals::kLoss || !is_coupled(loss)) return;
    const auto run = with_coupled(loss.row, [](auto l) { return &couple<decltype(l), T>; });
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      run(workspace_.sums[term] + 5 * panel * kPanel<T>, loss.parameters,
          workspace_.partial[term] + 3 * panel * kPanel<T>, workspace_.terms[term] + panel * kPanel<T>);
    }
  }

  T sample_weight(int term, std::int64_t m) const {
    return step_.sample_weight.data ? at<T>(step_.sample_weight, term != kValue, first_ + m) : T(1);
  }

  void store_terms() {
    for (std::int64_t m = 0; m < M_; ++m) {
      double loss = 0;
      for (int term = 0; term < step_.count_terms(); ++term) {
        const double sum = double(workspace_.terms[term][m]) * double(sample_weight(term, m));
        if (step_.weight[term] != 0) loss += step_.weight[term] * step_.share[term] * sum;
        if (step_.per_sample) {
          static_cast<T*>(step_.terms)[term * step_.N + first_ + m] = T(step_.share[term] * sum);
        }
        workspace_.totals[term] += sum;
      }
      if (step_.per_sample) static_cast<T*>(step_.total)[first_ + m] = T(loss);
    }
  }
};
