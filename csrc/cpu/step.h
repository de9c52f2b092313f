// One tile of a Sobolev step: values forward; the derivatives, each forward, to its residual and back (docs/math.md,
// section 3); the residual of the values, and values back.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
class Tile : private Heads<T> {
  using Base = Streams<T>;
  using V = Vec<T>;
  using Base::first_;
  using Base::last;
  using Base::M_;
  using Base::panels;
  using Base::size;
  using Base::step_;
  using Base::streams_;
  using Base::workspace_;
  using Heads<T>::tangents;
  using Heads<T>::values;

 public:
  Tile(const Step& step, const Shared<T>& shared, const Private<T>& workspace)
      : Heads<T>(step, shared, workspace), terms_(step, workspace.of_terms) {}

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    for (std::int64_t l = 0; l <= last(); ++l) {
      if (workspace_.q[l]) std::fill_n(workspace_.q[l], size(step_.layers[l].n_out), T(0));
    }
    if (step_.headed()) std::fill_n(workspace_.head_q, size(step_.O), T(0));
    load_rows(step_.x, first_, M_, step_.D, workspace_.ld_x, workspace_.x_rows, workspace_.x);
    step_.in_lockstep() ? forward() : forward_values();
    this->store_panels(values(), step_.y, 0, step_.O);
    terms_.sweeps(first, count, [&] { sweep(); });
    if (!terms_.backward()) return;
    step_.in_lockstep() ? this->backward_in_lockstep() : this->value_backward();
  }

 private:
  Terms<T> terms_;

  bool predicting() const { return terms_.predicting(); }
  bool backward() const { return terms_.backward(); }

  void sweep() {
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
    const bool likely = step_.residuals == Residuals::kLoss && is_likelihood(step_.loss[kValue]);
    terms_.compare(kValue, 0, 1, 0, step_.O, {}, ends(likely ? workspace_.head_a : values(), step_.O),
                   ends(workspace_.z_of[kValue][last()], step_.O));
    if (step_.headed() && backward()) this->head_backward(likely);
  }

  // Streams side by side, and the directions and cotangents at hand
  Ends<T> ends(T* array, std::int64_t n) const { return {array, size(n), n * kPanel<T>}; }
  Vectors<T> vectors(T* panels, std::int64_t n, T* rows, std::int64_t ld) const {
    return {ends(panels, n), ends(rows, ld), ld};
  }
  Vectors<T> directions() const { return vectors(workspace_.v, step_.W, workspace_.v_rows, workspace_.ld_v); }

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
    tangent_slopes(0);
    streams_ = 1;
  }

  // Directions from p on, side by side: their tangents through the layers and their adjoints back
  void by_tangents(std::int64_t p) {
    for (std::int64_t s = 0; s < streams_; ++s) direction(p + s, s);
    if (predicting()) {
      this->tangent_forward();
      if (step_.headed()) this->head_tangents();
      store_derivatives(tangents(), step_.derivatives, p, step_.O);
    }
    if (step_.residuals == Residuals::kNone) return;
    tangent_slopes(p);
    if (backward()) this->tangent_backward(p);
  }

  void tangent_slopes(std::int64_t p) {
    T* slope = workspace_.z_of[kFirst][last()];
    terms_.compare(kFirst, p, streams_, 0, step_.O, directions(), ends(tangents(), step_.O), ends(slope, step_.O));
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
      drawn(r + s, step_.O, workspace_.ld_u, workspace_.u_rows + s * size(workspace_.ld_u),
            workspace_.u + s * size(step_.O));
    }
    if (step_.headed()) this->head_seeds();
    if (predicting()) {
      this->output_gradient();
      store_derivatives(workspace_.gradient, step_.derivatives, r, step_.W);
    }
    if (step_.residuals == Residuals::kNone) return;
    const Vectors<T> u = vectors(workspace_.u, step_.O, workspace_.u_rows, workspace_.ld_u);
    terms_.compare(kFirst, r, streams_, 0, step_.W, u, ends(workspace_.gradient, step_.W),
                   ends(workspace_.g_bar, step_.W));
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
      store_columns(projected, kPanel<T>, M_, 1, step_.derivatives, p * step_.N + first_, step_.O, o);
      if (step_.residuals == Residuals::kNone) continue;
      terms_.compare(kFirst, p, 1, o, 1, directions(), ends(projected, 1), ends(workspace_.slope, 1));
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
    drawn(p, step_.W, workspace_.ld_v, workspace_.v_rows + s * size(workspace_.ld_v), workspace_.v + s * size(step_.W));
  }
};
