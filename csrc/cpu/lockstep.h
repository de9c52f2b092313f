// Values and tangents of all directions through the layers and back in lockstep: one product for all of them, whose
// columns are the samples of each stream, one after the other, without gaps. A batch of 20 has 40 columns with one
// direction, three registers, where panels of its own for each stream would be four.
//
// A row of columns is written in ascending order by whole registers, of which what goes beyond a stream is written
// again by the next, or by the next row. Columns beyond the last are 0. Included inside the namespace of one
// instruction set: no include here, no #pragma once.

template <class T>
class Lockstep : protected Streams<T> {
  using V = Vec<T>;

 protected:
  using Base = Streams<T>;
  using Base::Base;
  using Base::last;
  using Base::M_;
  using Base::shared_;
  using Base::size;
  using Base::step_;
  using Base::workspace_;

  void forward_in_lockstep() {
    to_columns(workspace_.x, step_.D, workspace_.v, step_.W, workspace_.columns_x);
    for (std::int64_t l = 0; l <= last(); ++l) {
      const T* below = l ? workspace_.columns[l - 1] : workspace_.columns_x;
      product_of_columns(shared_.forward[l], step_.layers[l].n_in, below, ld(), panels_of(columns()), workspace_.block,
                         [&](std::int64_t row, std::int64_t rows) {
                           values_forward(l, row, rows);
                           for (std::int64_t r = 0; r < rows; ++r) tangents_forward(l, row, r);
                         });
    }
    from_columns(workspace_.columns[last()], step_.O, 0, 1, workspace_.h[last()]);
    from_columns(workspace_.columns[last()], step_.O, 1, step_.P, workspace_.tangent[last()]);
  }

  // From the adjoints of the tops in workspace_.z_of
  void backward_in_lockstep() {
    T* top = workspace_.columns[last()];  // nobody reads what was in it
    to_columns(workspace_.z_of[kValue][last()], step_.O, workspace_.z_of[kFirst][last()], step_.O, top);
    for (std::int64_t o = 0; o < step_.O; ++o) through(last(), o, top + o * ld());
    for (std::int64_t l = last();; --l) {
      add_outer(l);
      if (workspace_.dbias[l]) add_bias_gradient(l);
      if (l == 0) break;
      product_of_columns(shared_.backward[l], step_.layers[l].n_out, workspace_.columns_z[l], ld(),
                         panels_of(columns()), workspace_.block, [&](std::int64_t row, std::int64_t rows) {
                           for (std::int64_t r = 0; r < rows; ++r) {
                             through(l - 1, row + r, workspace_.block + r * ld());
                           }
                         });
    }
    if (step_.dx) store_input_gradient();
  }

 private:
  std::int64_t ld() const { return workspace_.ld_columns; }
  std::int64_t columns() const { return (1 + step_.P) * M_; }
  static std::int64_t panels_of(std::int64_t columns) { return (columns + kPanel<T> - 1) / kPanel<T>; }

  // f(m, column) of each register of a stream's samples
  template <class F>
  void each(std::int64_t stream, F f) const {
    for (std::int64_t m = 0; m < M_; m += kPanel<T>) f(m, stream * M_ + m);
  }

  // f(m, column) of each register of all tangents
  template <class F>
  void each_tangent(F f) const {
    for (std::int64_t stream = 1; stream <= step_.P; ++stream) each(stream, f);
  }

  // Columns from panels of values [n], and of tangents [n_tangent], whose other rows are 0
  void to_columns(const T* values, std::int64_t n, const T* tangents, std::int64_t n_tangent, T* to) const {
    for (std::int64_t i = 0; i < n; ++i, to += ld()) {
      each(0, [&](std::int64_t m, std::int64_t c) { V::load(values + m * n + i * kPanel<T>).store(to + c); });
      for (std::int64_t s = 0; s < step_.P; ++s) {
        const T* from = tangents + s * size(n_tangent) + i * kPanel<T>;
        each(1 + s, [&](std::int64_t m, std::int64_t c) {
          (i < n_tangent ? V::load(from + m * n_tangent) : V(0.0)).store(to + c);
        });
      }
      V(0.0).store(to + columns());
    }
  }

  // Panels [n] of some streams from columns
  void from_columns(const T* from, std::int64_t n, std::int64_t first, std::int64_t streams, T* panels) const {
    for (std::int64_t s = 0; s < streams; ++s, panels += size(n)) {
      for (std::int64_t i = 0; i < n; ++i) {
        each(first + s, [&](std::int64_t m, std::int64_t c) {
          const auto there = V::numbers() < V(double(M_ - m));
          where(there, V::load(from + i * ld() + c), V(0.0)).store(panels + m * n + i * kPanel<T>);
        });
      }
    }
  }

  // A block's values without gaps, so that an activation costs what its samples are
  void values_forward(std::int64_t l, std::int64_t row, std::int64_t rows) {
    const Formula& formula = step_.layers[l].activation;
    T *values = workspace_.values, *d1 = workspace_.d1[l], *d2 = workspace_.d2[l];
    for (std::int64_t r = 0; r < rows; ++r) {
      const V bias(shared_.bias[l] ? double(shared_.bias[l][row + r]) : 0.0);
      const T* z = workspace_.block + r * ld();
      each(0, [&](std::int64_t m, std::int64_t c) { (V::load(z + c) + bias).store(values + r * M_ + m); });
    }
    V(0.0).store(values + rows * M_);
    if (formula.row == 0) return;
    const std::int64_t at = row * M_;
    with_activation(formula.row, [](auto a) { return &activate<decltype(a), T>; })(
        values, d1 ? d1 + at : nullptr, d2 ? d2 + at : nullptr, rows * M_, formula.parameters);
  }

  // Row r of a block: its values are put before its tangents
  void tangents_forward(std::int64_t l, std::int64_t row, std::int64_t r) {
    const std::int64_t at = (row + r) * ld();
    const T *d1 = workspace_.d1[l] + (row + r) * M_, *d2 = workspace_.d2[l] + (row + r) * M_;
    const T *z = workspace_.block + r * ld(), *values = workspace_.values + r * M_;
    T *to = workspace_.columns[l] + at, *curvature = workspace_.curvature[l];
    each(0, [&](std::int64_t m, std::int64_t c) { V::load(values + m).store(to + c); });
    each_tangent([&](std::int64_t m, std::int64_t c) {
      const V z_dot = V::load(z + c);
      if (curvature) (V::load(d2 + m) * z_dot).store(curvature + at + c);
      (workspace_.d1[l] ? V::load(d1 + m) * z_dot : z_dot).store(to + c);
    });
    V(0.0).store(to + columns());
  }

  // Adjoints of a row of h and ḣ into those of z and ż, and what the tangents owe the values
  void through(std::int64_t l, std::int64_t row, const T* adjoint) {
    const T *d1 = workspace_.d1[l] + row * M_, *curvature = workspace_.curvature[l] + row * ld();
    T* to = workspace_.columns_z[l] + row * ld();
    each(0, [&](std::int64_t m, std::int64_t c) {
      const V a = V::load(adjoint + c);
      V z = workspace_.d1[l] ? V::load(d1 + m) * a : a;
      for (std::int64_t k = c + M_; workspace_.curvature[l] && k < columns(); k += M_) {
        z = z + V::load(curvature + k) * V::load(adjoint + k);
      }
      z.store(to + c);
    });
    each_tangent([&](std::int64_t m, std::int64_t c) {
      const V a = V::load(adjoint + c);
      (workspace_.d1[l] ? V::load(d1 + m) * a : a).store(to + c);
    });
    V(0.0).store(to + columns());
  }

  void add_outer(std::int64_t l) {
    const std::int64_t n = step_.layers[l].n_in, ld_rows = workspace_.ld_rows;
    for (std::int64_t c = 0; l > 0 && c < columns(); c += kPanel<T>) {
      T* rows = workspace_.rows_of[kValue][l] + c * ld_rows;
      for (std::int64_t i = 0; i < n; i += kPanel<T>) {
        transpose_square(workspace_.columns[l - 1] + i * ld() + c, ld(), n - i, rows + i, ld_rows);
      }
    }
    Base::sum_outer(kValue, l, 1);
    if (l == 0) Base::sum_outer(kFirst, l, step_.P);  // above it the values' sums are those of all columns
  }

  void add_bias_gradient(std::int64_t l) {
    for (std::int64_t i = 0; i < step_.layers[l].n_out; ++i) {
      const T* z = workspace_.columns_z[l] + i * ld();
      V lanes(0.0);
      std::int64_t m = 0;
      for (; m + kPanel<T> <= M_; m += kPanel<T>) lanes = lanes + V::load(z + m);
      const auto there = V::numbers() < V(double(M_ - m));
      if (m < M_) lanes = lanes + where(there, V::load(z + m), V(0.0));
      workspace_.dbias[l][i] += sum(lanes);
    }
  }

  void store_input_gradient() {
    const T* block = workspace_.block;
    T* dx = static_cast<T*>(step_.dx) + Base::first_ * step_.D;
    product_of_columns(shared_.input, step_.layers[0].n_out, workspace_.columns_z[0], ld(), panels_of(M_),
                       workspace_.block, [&](std::int64_t row, std::int64_t rows) {
                         for (std::int64_t m = 0; m < M_; ++m) {
                           for (std::int64_t r = 0; r < rows; ++r) dx[m * step_.D + row + r] = block[r * ld() + m];
                         }
                       });
  }
};
