// One tile of a Sobolev step (docs/math.md, section 3): value forward; for each direction tangent forward, residual,
// tangent backward; value residual, value backward. Gradients are added to the thread's own.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class A, class T>
void activate(T* z, T* d1, T* d2, std::int64_t count, const double* parameters) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < count; i += V::kLanes) {
    const Derivatives<V> s = A::call(V::load(z + i), parameters);
    s.value.store(z + i);
    if (d1) s.d1.store(d1 + i);
    if (d2) s.d2.store(d2 + i);
  }
}

// The losses of one panel [O][kPanel]: slopes times `factor` (one for each sample) over `prediction`, sums to `terms`.
template <class L, class T>
void residual(const T* prediction, const T* target, std::int64_t O, const T* factor, const double* parameters, T* slope,
              T* terms) {
  using V = Vec<T>;
  for (int m = 0; m < kPanel<T>; m += V::kLanes) {
    V total(0.0);
    for (std::int64_t i = m; i < O * kPanel<T>; i += kPanel<T>) {
      const Residual<V> r = L::call(V::load(prediction + i) - V::load(target + i), parameters);
      total = total + r.value;
      if (slope) (r.slope * V::load(factor + m)).store(slope + i);
    }
    (V::load(terms + m) + total).store(terms + m);
  }
}

template <class T>
T at(const Strided& a, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0) {
  return static_cast<const T*>(a.data)[i * a.stride[0] + j * a.stride[1] + k * a.stride[2]];
}

template <class T>
class Tile {
  using V = Vec<T>;

 public:
  Tile(const Step& step, const Shared<T>& shared, const Private<T>& own) : step_(step), shared_(shared), own_(own) {}

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    for (std::int64_t i = 0; i < 2 * panels() * kPanel<T>; ++i) own_.terms[i] = 0;
    value_forward();
    if (step_.side == Side::kTangents) {
      for (std::int64_t p = 0; p < step_.P; ++p) by_tangent(p);
    } else {
      for (std::int64_t o = 0; step_.P && o < step_.O; ++o) by_gradient(o);
    }
    store_panels(own_.h[last()], static_cast<T*>(step_.y), 0, step_.O);
    if (step_.residuals == Residuals::kNone) return;
    value_residual();
    if (step_.gradients) value_backward();
    if (step_.terms) store_terms();
  }

 private:
  const Step& step_;
  const Shared<T>& shared_;
  const Private<T>& own_;
  std::int64_t first_ = 0, M_ = 0;

  // One direction: its tangent through the layers, and the adjoint of it back
  void by_tangent(std::int64_t p) {
    direction(p);
    tangent_forward();
    store_tangents(own_.tangent[last()], p, 0, step_.O);
    if (step_.residuals == Residuals::kNone) return;
    tangent_residual(own_.tangent[last()], p, 0, step_.O);
    if (step_.gradients) tangent_backward(p == 0);
  }

  // One output: its gradient g (docs/math.md, section 4), whose projections g·v are the tangents of all directions.
  // Their slopes make its adjoint; <g, g_bar> = <e_o, D m[g_bar]>, so one tangent along g_bar against delta is all.
  void by_gradient(std::int64_t o) {
    output_gradient(o);
    for (std::int64_t p = 0; p < step_.P; ++p) {
      direction(p);
      T* projected = own_.tangent[last()];
      for_gradient([&](std::int64_t i, std::int64_t m) {
        V total(0.0);
        for (std::int64_t d = 0; d < step_.D; ++d) {
          const std::int64_t j = i + d * kPanel<T>;
          total = total + V::load(own_.gradient + j) * V::load(own_.v + j);
        }
        total.store(projected + m);
      });
      store_tangents(projected, p, o, 1);
      if (step_.residuals == Residuals::kNone) continue;
      tangent_residual(projected, p, o, 1);
      if (!step_.gradients) continue;
      for_gradient([&](std::int64_t i, std::int64_t m) {
        const V slope = V::load(own_.z_bar + m);
        for (std::int64_t j = i; j < i + step_.D * kPanel<T>; j += kPanel<T>) {
          const V along = slope * V::load(own_.v + j);
          (p ? V::load(own_.g_bar + j) + along : along).store(own_.g_bar + j);
        }
      });
    }
    if (step_.residuals != Residuals::kNone && step_.gradients) gradient_backward(o == 0);
  }

  // f(first number of a vector of samples in an array [D], and in one [1])
  template <class F>
  void for_gradient(F f) {
    for (std::int64_t m = 0; m < panels() * kPanel<T>; m += V::kLanes) {
      f((m / kPanel<T>)*step_.D * kPanel<T> + m % kPanel<T>, m);
    }
  }

  // delta_l = σ' a_l down from e_o, and the gradient below the first layer
  void output_gradient(std::int64_t o) {
    const std::int64_t row = kPanel<T>, size = step_.O * row;
    for (std::int64_t i = 0; i < panels() * size; ++i) own_.a[last()][i] = i % size / row == o ? T(1) : T(0);
    through_delta(last(), 0, panels() * size);
    for (std::int64_t l = last(); l >= 0; --l) {
      const Layer& layer = step_.layers[l];
      product<T>(shared_.backward[l], layer.n_in, layer.n_out, own_.delta[l], M_, nullptr,
                 l ? own_.a[l - 1] : own_.gradient, [&](std::int64_t i, std::int64_t count) {
                   if (l) through_delta(l - 1, i, count);
                 });
    }
  }

  void through_delta(std::int64_t l, std::int64_t i, std::int64_t count) {
    const T* d1 = own_.d1[l];
    for (const std::int64_t end = i + count; i < end; i += V::kLanes) {
      const V a = V::load(own_.a[l] + i);
      (d1 ? V::load(d1 + i) * a : a).store(own_.delta[l] + i);
    }
  }

  // The tangent along g_bar, its outer products with delta, and what it owes the value stream
  void gradient_backward(bool first) {
    for (std::int64_t i = 0; i < panels() * step_.D * kPanel<T>; ++i) own_.v[i] = own_.g_bar[i];
    panels_to_rows(own_.v, step_.D, M_, own_.v_rows, own_.ld_x);
    tangent_forward();
    for (std::int64_t l = 0; l <= last(); ++l) {
      const Layer& layer = step_.layers[l];
      add_outer(own_.delta[l], l, own_.tangent, own_.v_rows);
      T* q = own_.q[l];
      for (std::int64_t i = 0; q && i < panels() * layer.n_out * kPanel<T>; i += V::kLanes) {
        const V owed = V::load(own_.curvature[l] + i) * V::load(own_.a[l] + i);
        (first ? owed : V::load(q + i) + owed).store(q + i);
      }
    }
  }

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t last() const { return step_.L - 1; }
  const T* below(T* const* arrays, const T* input, std::int64_t l) const { return l ? arrays[l - 1] : input; }

  void load_rows(const Strided& from, std::int64_t p, T* rows, T* panels) {
    for (std::int64_t m = 0; m < M_; ++m) {
      for (std::int64_t d = 0; d < own_.ld_x; ++d) {
        rows[m * own_.ld_x + d] = d < step_.D ? at<T>(from, p, first_ + m, d) : T(0);
      }
    }
    rows_to_panels(rows, own_.ld_x, step_.D, M_, panels);
  }

  // to[(offset + first + m)][n] = panels[m][n]
  void store_panels(const T* panels, T* to, std::int64_t offset, std::int64_t n) {
    if (!to) return;
    to += (offset + first_) * n;
    for (std::int64_t m = 0; m < M_; ++m) {
      const T* from = panels + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t i = 0; i < n; ++i) to[m * n + i] = from[i * kPanel<T>];
    }
  }

  void value_forward() {
    const Strided x{step_.x.data, {0, step_.x.stride[0], step_.x.stride[1]}};
    load_rows(x, 0, own_.x_rows, own_.x);
    for (std::int64_t l = 0; l <= last(); ++l) {
      const Layer& layer = step_.layers[l];
      const auto activation = with_activation(layer.activation.row, [](auto a) { return &activate<decltype(a), T>; });
      T *h = own_.h[l], *d1 = own_.d1[l], *d2 = own_.d2[l];
      product(shared_.forward[l], layer.n_out, layer.n_in, below(own_.h, own_.x, l), M_, shared_.bias[l], h,
              [&](std::int64_t i, std::int64_t count) {
                if (layer.activation.row == 0) return;
                activation(h + i, d1 ? d1 + i : nullptr, d2 ? d2 + i : nullptr, count, layer.activation.parameters);
              });
    }
  }

  void direction(std::int64_t p) {
    const Directions& directions = step_.directions;
    if (directions.distribution == Distribution::kGiven) return load_rows(directions.given, p, own_.v_rows, own_.v);
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      T* v = own_.v + panel * step_.D * kPanel<T>;
      T* frame = own_.frames ? own_.frames + panel * step_.P * step_.D * kPanel<T> : nullptr;
      draw_direction(directions, first_ + panel * kPanel<T>, p, step_.D, v, frame);
    }
    panels_to_rows(own_.v, step_.D, M_, own_.v_rows, own_.ld_x);
  }

  void tangent_forward() {
    for (std::int64_t l = 0; l <= last(); ++l) {
      const Layer& layer = step_.layers[l];
      T *z = own_.tangent[l], *curvature = own_.curvature[l];
      const T *d1 = own_.d1[l], *d2 = own_.d2[l];
      product<T>(shared_.forward[l], layer.n_out, layer.n_in, below(own_.tangent, own_.v, l), M_, nullptr, z,
                 [&](std::int64_t i, std::int64_t count) {
                   if (!d1) return;
                   for (const std::int64_t end = i + count; i < end; i += V::kLanes) {
                     const V z_dot = V::load(z + i);
                     if (curvature) (V::load(d2 + i) * z_dot).store(curvature + i);
                     (V::load(d1 + i) * z_dot).store(z + i);
                   }
                 });
    }
  }

  // tangents[p][n][o ...] = panels[n]
  void store_tangents(const T* panels, std::int64_t p, std::int64_t o, std::int64_t n) {
    if (!step_.tangents) return;
    for (std::int64_t m = 0; m < M_; ++m) {
      T* to = static_cast<T*>(step_.tangents) + (p * step_.N + first_ + m) * step_.O + o;
      const T* from = panels + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t i = 0; i < n; ++i) to[i] = from[i * kPanel<T>];
    }
  }

  // n targets from output `first` on: D f(x)[v] from the dense Jacobian, or as it was given
  void tangent_target(std::int64_t p, std::int64_t first, std::int64_t n) {
    if (step_.derivative_target == DerivativeTarget::kTangents) {
      return load_target(step_.derivative, first, n,
                         [&](std::int64_t m, std::int64_t o) { return at<T>(step_.derivative, p, first_ + m, o); });
    }
    const std::int64_t stride = step_.derivative.stride[2];
    load_target(step_.derivative, first, n, [&](std::int64_t m, std::int64_t o) {
      const T* row = &static_cast<const T*>(
          step_.derivative.data)[(first_ + m) * step_.derivative.stride[0] + o * step_.derivative.stride[1]];
      const T* v = own_.v_rows + m * own_.ld_x;
      V lanes(0.0);
      std::int64_t d = 0;
      for (; stride == 1 && d + V::kLanes <= step_.D; d += V::kLanes) lanes = lanes + V::load(row + d) * V::load(v + d);
      T total = d ? sum(lanes) : T(0);
      for (; d < step_.D; ++d) total += row[d * stride] * v[d];
      return total;
    });
  }

  template <class F>
  void load_target(const Strided& from, std::int64_t first, std::int64_t n, F value) {
    for (std::int64_t m = 0; m < panels() * kPanel<T>; ++m) {
      T* to = own_.target + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
      for (std::int64_t o = 0; o < n; ++o) to[o * kPanel<T>] = m < M_ && from.data ? value(m, first + o) : T(0);
    }
  }

  // The adjoint of n predictions, into z_bar: a loss's slopes, or the cotangents themselves
  void top(const T* prediction, std::int64_t n, const Formula& loss, double factor, std::int64_t term) {
    const std::int64_t size = n * kPanel<T>;
    if (step_.residuals == Residuals::kCotangents) {
      for (std::int64_t i = 0; i < panels() * size; ++i) own_.z_bar[i] = own_.target[i];
      return;
    }
    const auto run = with_loss(loss.row, [](auto l) { return &residual<decltype(l), T>; });
    T factors[kPanel<T>];
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      for (std::int64_t i = 0, m = panel * kPanel<T>; i < kPanel<T>; ++i, ++m) {
        const T weight = step_.sample_weight.data && m < M_ ? at<T>(step_.sample_weight, first_ + m) : T(1);
        factors[i] = m < M_ ? T(factor) * weight : T(0);
      }
      run(prediction + panel * size, own_.target + panel * size, n, factors, loss.parameters,
          step_.gradients ? own_.z_bar + panel * size : nullptr, own_.terms + (term * panels() + panel) * kPanel<T>);
    }
  }

  void tangent_residual(const T* prediction, std::int64_t p, std::int64_t o, std::int64_t n) {
    tangent_target(p, o, n);
    top(prediction, n, step_.derivative_loss, step_.derivative_weight * step_.derivative_scale, 1);
  }

  void value_residual() {
    if (!step_.values.data && step_.residuals == Residuals::kLoss) {
      for (std::int64_t i = 0; step_.gradients && i < panels() * step_.O * kPanel<T>; ++i) own_.z_bar[i] = 0;
      return;
    }
    load_target(step_.values, 0, step_.O,
                [&](std::int64_t m, std::int64_t o) { return at<T>(step_.values, first_ + m, o); });
    top(own_.h[last()], step_.O, step_.value_loss, step_.value_weight * step_.value_scale, 0);
  }

  // From a, the adjoint of a layer's tangent, in place to σ' a; and q += σ'' ż a
  void through_tangent(std::int64_t l, bool first, T* a, std::int64_t i, std::int64_t count) {
    const T *d1 = own_.d1[l], *curvature = own_.curvature[l];
    T* q = own_.q[l];
    if (!d1) return;
    for (const std::int64_t end = i + count; i < end; i += V::kLanes) {
      const V adjoint = V::load(a + i);
      if (curvature) {
        const V owed = V::load(curvature + i) * adjoint;
        (first ? owed : V::load(q + i) + owed).store(q + i);
      }
      (V::load(d1 + i) * adjoint).store(a + i);
    }
  }

  // From b, the adjoint of a layer's value, in place to σ' b + q
  void through_value(std::int64_t l, T* b, std::int64_t i, std::int64_t count) {
    const T *d1 = own_.d1[l], *q = own_.q[l];
    if (!d1) return;
    for (const std::int64_t end = i + count; i < end; i += V::kLanes) {
      const V adjoint = V::load(d1 + i) * V::load(b + i);
      (q ? adjoint + V::load(q + i) : adjoint).store(b + i);
    }
  }

  // dweight += z_bar hᵀ, where h are the numbers below the layer
  void add_outer(const T* z_bar, std::int64_t l, T* const* arrays, const T* input_rows) {
    const Layer& layer = step_.layers[l];
    if (l > 0) panels_to_rows(arrays[l - 1], layer.n_in, M_, own_.rows, own_.ld_rows);
    outer(z_bar, layer.n_out, l ? own_.rows : input_rows, l ? own_.ld_rows : own_.ld_x, layer.n_in, M_, own_.dweight[l],
          Private<T>::ld_gradient(layer));
  }

  // Down the layers from z_bar = the adjoint of the top; `through` turns a layer's adjoint into that of its z
  template <class Through, class AtLayer>
  void backward(T* const* arrays, const T* input_rows, Through through, AtLayer at_layer) {
    T *z_bar = own_.z_bar, *next = own_.next_bar;
    through(last(), z_bar, 0, panels() * step_.O * kPanel<T>);
    for (std::int64_t l = last(); l >= 0; --l) {
      const Layer& layer = step_.layers[l];
      add_outer(z_bar, l, arrays, input_rows);
      at_layer(l, z_bar, next);
      if (l == 0) return;
      product<T>(shared_.backward[l], layer.n_in, layer.n_out, z_bar, M_, nullptr, next,
                 [&](std::int64_t i, std::int64_t count) { through(l - 1, next, i, count); });
      T* swap = z_bar;
      z_bar = next;
      next = swap;
    }
  }

  void tangent_backward(bool first) {
    backward(
        own_.tangent, own_.v_rows,
        [&](std::int64_t l, T* a, std::int64_t i, std::int64_t count) { through_tangent(l, first, a, i, count); },
        [](std::int64_t, const T*, T*) {});
  }

  void value_backward() {
    backward(
        own_.h, own_.x_rows,
        [&](std::int64_t l, T* b, std::int64_t i, std::int64_t count) { through_value(l, b, i, count); },
        [&](std::int64_t l, const T* z_bar, T* free) {
          if (own_.dbias[l]) add_bias_gradient(l, z_bar);
          if (l > 0 || !step_.dx) return;
          const Layer& layer = step_.layers[0];
          product<T>(shared_.backward[0], layer.n_in, layer.n_out, z_bar, M_, nullptr, free,
                     [](std::int64_t, std::int64_t) {});
          store_panels(free, static_cast<T*>(step_.dx), 0, step_.D);
        });
  }

  void add_bias_gradient(std::int64_t l, const T* z_bar) {
    const std::int64_t n = step_.layers[l].n_out;
    for (std::int64_t i = 0; i < n; ++i) {
      T total = 0;
      std::int64_t m = 0;
      V lanes(0.0);
      for (; m + V::kLanes <= M_; m += V::kLanes) {
        lanes = lanes + V::load(z_bar + ((m / kPanel<T>)*n + i) * kPanel<T> + m % kPanel<T>);
      }
      for (; m < M_; ++m) total += z_bar[((m / kPanel<T>)*n + i) * kPanel<T> + m % kPanel<T>];
      own_.dbias[l][i] += total + sum(lanes);
    }
  }

  void store_terms() {
    const double scales[2] = {step_.value_scale, step_.derivative_scale};
    const double weights[2] = {step_.value_weight, step_.derivative_weight};
    for (std::int64_t m = 0; m < M_; ++m) {
      double loss = 0;
      for (int term = 0; term < 2; ++term) {
        const double sum = double(own_.terms[term * panels() * kPanel<T> + m]);
        loss += weights[term] * scales[term] * sum;
        if (step_.per_sample) static_cast<T*>(step_.terms)[term * step_.N + first_ + m] = T(scales[term] * sum);
        own_.totals[term] += sum;
      }
      if (step_.per_sample) static_cast<T*>(step_.loss)[first_ + m] = T(loss);
    }
  }
};
