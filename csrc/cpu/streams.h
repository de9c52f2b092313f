// The streams of one tile through the layers and their adjoints (docs/math.md, sections 2 to 4): values, tangents,
// gradients of outputs. Where they start and what is made of their ends is in step.h.
// Streams of several derivatives are carried side by side: their arrays are [stream][panel][n][kPanel], to a product no
// more than so many panels.
// Gradients of the weights are added to the thread's part of them.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class A, class T>
SK_INLINE void activate_by(T* z, T* d1, T* d2, std::int64_t count, const double* parameters) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < count; i += V::kLanes) {
    const Derivatives<V> s = A::call(V::load(z + i), parameters);
    s.value.store(z + i);
    if (d1) s.d1.store(d1 + i);
    if (d2) s.d2.store(d2 + i);
  }
}

// f(parameters): a first one that is known to be 1 costs nothing, softplus divides by its own.
template <class A, class F>
SK_INLINE void with_usual(const double* parameters, F f) {
  if constexpr (A::kParameters > 0) {
    const double usual[] = {1, parameters[1]};
    if (parameters[0] == 1) return f(usual);
  }
  f(parameters);
}

template <class A, class T>
void activate(T* z, T* d1, T* d2, std::int64_t count, const double* parameters) {
  with_usual<A>(parameters, [=](const double* usual) { activate_by<A>(z, d1, d2, count, usual); });
}

template <class T>
class Streams {
 protected:
  using V = Vec<T>;

  Streams(const Step& step, const Shared<T>& shared, const Private<T>& workspace)
      : step_(step), shared_(shared), workspace_(workspace) {}

  const Step& step_;
  const Shared<T>& shared_;
  const Private<T>& workspace_;
  std::int64_t first_ = 0, M_ = 0;
  std::int64_t streams_ = 1;     // derivatives at hand
  bool begun_[kMaxLayers] = {};  // whether a layer's gradient holds a sum already

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t last() const { return step_.L - 1; }
  std::int64_t size(std::int64_t n) const { return panels() * n * kPanel<T>; }

  std::int64_t all_panels() const { return streams_ * panels(); }

  // f(i, value) for each row of a panel, from `row` on: where it lies in an array of n features, and where the values
  // of its samples do
  template <class F>
  void each(std::int64_t n, std::int64_t panel, std::int64_t row, std::int64_t rows, F f) const {
    const std::int64_t begin = (panel * n + row) * kPanel<T>;
    const std::int64_t stream = panel < panels() ? 0 : panel / panels() * size(n);
    for (std::int64_t i = begin; i < begin + rows * kPanel<T>; i += kPanel<T>) f(i, i - stream);
  }

  // The same for all rows of all panels
  template <class F>
  void each(std::int64_t n, F f) const {
    for (std::int64_t panel = 0; panel < all_panels(); ++panel) each(n, panel, 0, n, f);
  }

  static void add(T* array, std::int64_t i, V term) { (V::load(array + i) + term).store(array + i); }

  void value_forward() {
    for (std::int64_t l = 0; l <= last(); ++l) {
      const Layer& layer = step_.layers[l];
      const auto activation = with_activation(layer.activation.row, [](auto a) { return &activate<decltype(a), T>; });
      T *h = workspace_.h[l], *d1 = workspace_.d1[l], *d2 = workspace_.d2[l];
      product(shared_.forward[l], layer.n_in, l ? workspace_.h[l - 1] : workspace_.x, panels(), shared_.bias[l], h,
              [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                if (layer.activation.row == 0) return;
                const std::int64_t i = (panel * layer.n_out + row) * kPanel<T>;
                activation(h + i, d1 ? d1 + i : nullptr, d2 ? d2 + i : nullptr, rows * kPanel<T>,
                           layer.activation.parameters);
              });
    }
  }

  // ḣ from ḣ_0 = v, and σ'' ż
  void tangent_forward() {
    for (std::int64_t l = 0; l <= last(); ++l) {
      const std::int64_t n = step_.layers[l].n_out;
      T *z = workspace_.tangent[l], *curvature = workspace_.curvature[l];
      const T *d1 = workspace_.d1[l], *d2 = workspace_.d2[l];
      product<T>(shared_.forward[l], l ? step_.layers[l].n_in : step_.W, l ? workspace_.tangent[l - 1] : workspace_.v,
                 all_panels(), nullptr, z, [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (!d1) return;
                   each(n, panel, row, rows, [&](std::int64_t i, std::int64_t value) {
                     const V z_dot = V::load(z + i);
                     if (curvature) (V::load(d2 + value) * z_dot).store(curvature + i);
                     (V::load(d1 + value) * z_dot).store(z + i);
                   });
                 });
    }
  }

  // The adjoint of ḣ, from that of its top in workspace_.z_of, down to that of the directions from p on if it is wanted
  void tangent_backward(std::int64_t p) {
    backward(
        kFirst, streams_,
        [&](std::int64_t l, T* a, std::int64_t panel, std::int64_t row, std::int64_t rows) {
          const T *d1 = workspace_.d1[l], *curvature = workspace_.curvature[l];
          if (!d1) return;
          each(step_.layers[l].n_out, panel, row, rows, [&](std::int64_t i, std::int64_t value) {
            const V adjoint = V::load(a + i);
            if (curvature) add(workspace_.q[l], value, V::load(curvature + i) * adjoint);
            (V::load(d1 + value) * adjoint).store(a + i);
          });
        },
        [&](std::int64_t l, const T* z_bar) {
          if (l > 0 || !step_.dgiven) return;
          T* free = z_bar == workspace_.z_bar ? workspace_.next_bar : workspace_.z_bar;
          product<T>(shared_.backward[0], step_.layers[0].n_out, z_bar, all_panels(), nullptr, free,
                     [](std::int64_t, std::int64_t, std::int64_t) {});
          for (std::int64_t s = 0; s < streams_; ++s) {
            store_panels(free + s * size(step_.W), step_.dgiven, (p + s) * step_.N, step_.W);
          }
        });
  }

  // The adjoint of h, from that of its top in workspace_.z_of, with what the derivatives owe it
  void value_backward() {
    backward(
        kValue, 1,
        [&](std::int64_t l, T* b, std::int64_t panel, std::int64_t row, std::int64_t rows) {
          const T *d1 = workspace_.d1[l], *q = workspace_.q[l];
          if (!d1) return;
          each(step_.layers[l].n_out, panel, row, rows, [&](std::int64_t i, std::int64_t) {
            const V adjoint = V::load(d1 + i) * V::load(b + i);
            (q ? adjoint + V::load(q + i) : adjoint).store(b + i);
          });
        },
        [&](std::int64_t l, const T* z_bar) {
          if (workspace_.dbias[l]) add_bias_gradient(l, z_bar);
          if (l > 0 || !step_.dx) return;
          T* free = z_bar == workspace_.z_bar ? workspace_.next_bar : workspace_.z_bar;
          product<T>(shared_.input, step_.layers[0].n_out, z_bar, panels(), nullptr, free,
                     [](std::int64_t, std::int64_t, std::int64_t) {});
          store_panels(free, step_.dx, 0, step_.D);
        });
  }

  // From the cotangents u: delta_l = σ' a_l down the layers, and the gradients g = Jᵀu of the differentiated inputs
  void output_gradient() {
    const auto through_delta = [&](std::int64_t l, std::int64_t panel, std::int64_t row, std::int64_t rows) {
      const T* d1 = workspace_.d1[l];
      each(step_.layers[l].n_out, panel, row, rows, [&](std::int64_t i, std::int64_t value) {
        const V a = V::load(workspace_.a[l] + i);
        (d1 ? V::load(d1 + value) * a : a).store(workspace_.delta[l] + i);
      });
    };
    for (std::int64_t panel = 0; panel < all_panels(); ++panel) through_delta(last(), panel, 0, step_.O);
    for (std::int64_t l = last(); l >= 0; --l) {
      product<T>(shared_.backward[l], step_.layers[l].n_out, workspace_.delta[l], all_panels(), nullptr,
                 l ? workspace_.a[l - 1] : workspace_.gradient,
                 [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (l) through_delta(l - 1, panel, row, rows);
                 });
    }
  }

  // The adjoint of g: <g, g_bar> = <u, D m[g_bar]>, so one tangent along g_bar against the delta at hand is all of it
  void gradient_backward() {
    each(step_.W, [&](std::int64_t i, std::int64_t) { V::load(workspace_.g_bar + i).store(workspace_.v + i); });
    panels_to_rows(workspace_.v, step_.W, all_panels(), workspace_.v_rows, workspace_.ld_v);
    tangent_forward();
    for (std::int64_t l = 0; l <= last(); ++l) {
      add_outer(kFirst, l, streams_);
      const T* curvature = workspace_.curvature[l];
      if (!curvature) continue;
      each(step_.layers[l].n_out, [&](std::int64_t i, std::int64_t value) {
        add(workspace_.q[l], value, V::load(curvature + i) * V::load(workspace_.a[l] + i));
      });
    }
  }

  // to[offset + sample][n] = panels[sample][n]
  void store_panels(const T* panels, void* to, std::int64_t offset, std::int64_t n) {
    store_columns(panels, n * kPanel<T>, M_, n, to, offset + first_, n, 0);
  }

  // The gradient of a layer's weights += z_bar hᵀ of so many streams, where h are the numbers below it; at once, or
  // when those of all parts are gathered
  void add_outer(Term term, std::int64_t l, std::int64_t streams) {
    const Layer& layer = step_.layers[l];
    T* const* arrays = term == kValue ? workspace_.h : workspace_.tangent;
    if (l > 0) {
      panels_to_rows(arrays[l - 1], layer.n_in, streams * panels(), workspace_.rows_of[term][l], workspace_.ld_rows);
    }
    sum_outer(term, l, streams);
  }

  void sum_outer(Term term, std::int64_t l, std::int64_t streams) {
    const Layer& layer = step_.layers[l];
    if (step_.gathers()) return;
    T* to = workspace_.dweight[l];
    if (!begun_[l] && l == 0 && step_.W < step_.D) {  // columns that a derivative does not reach
      std::fill_n(to, Private<T>::gradient_size(layer), T(0));
      begun_[l] = true;
    }
    const std::int64_t n = l || term == kValue ? layer.n_in : step_.W;
    const std::int64_t panels = workspace_.append(step_, term, l, streams, M_, workspace_.samples) - workspace_.samples;
    outer_to_strips(workspace_.samples, panels, layer.n_out, n, !begun_[l], to, layer.n_in);
    begun_[l] = true;
  }

 private:
  // Down the layers from the adjoints of the tops of so many streams; `through` turns a layer's adjoint into that of
  // its z
  template <class Through, class AtLayer>
  void backward(Term term, std::int64_t streams, Through through, AtLayer at_layer) {
    T* const* z_bar = workspace_.z_of[term];
    for (std::int64_t panel = 0; panel < streams * panels(); ++panel) through(last(), z_bar[last()], panel, 0, step_.O);
    for (std::int64_t l = last(); l >= 0; --l) {
      add_outer(term, l, streams);
      at_layer(l, z_bar[l]);
      if (l == 0) return;
      T* next = z_bar[l - 1];
      product<T>(
          shared_.backward[l], step_.layers[l].n_out, z_bar[l], streams * panels(), nullptr, next,
          [&](std::int64_t panel, std::int64_t row, std::int64_t rows) { through(l - 1, next, panel, row, rows); });
    }
  }

  void add_bias_gradient(std::int64_t l, const T* z_bar) {
    const std::int64_t n = step_.layers[l].n_out * kPanel<T>;
    for (std::int64_t i = 0; i < n; i += kPanel<T>) {
      workspace_.dbias[l][i / kPanel<T>] += sum_samples(z_bar + i, n, M_);
    }
  }
};
