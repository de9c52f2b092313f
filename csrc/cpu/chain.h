// One tile of a chain of layers in one of its passes (csrc/chain.h). What passes keep is of all samples, layer after
// layer in panels [n][kPanel], so that each may have tiles and threads of its own.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
struct ChainKept {
  T* h[kMaxLayers];                    // of all layers but the last
  T *d1[kMaxLayers], *d2[kMaxLayers];  // σ', σ''
  T* a[kMaxLayers];                    // adjoint of h, of curved activations
  T* delta[kMaxLayers];                // σ' a
  T* q[kMaxLayers];                    // what the gradient owes z
  ChainSizes sizes;

  explicit ChainKept(const Chain& chain) {
    const std::int64_t panels = (chain.N + kPanel<T> - 1) / kPanel<T>;
    const auto take = [&](bool wanted, void* base, std::int64_t& used, std::int64_t n) {
      T* here = wanted && base ? static_cast<T*>(base) + used : nullptr;
      used += wanted ? panels * n * kPanel<T> : 0;
      return here;
    };
    std::int64_t owed = 0;
    for (std::int64_t l = 0; l < chain.L; ++l) {
      const Layer& layer = chain.layers[l];
      const std::int64_t n = layer.n_out;
      const bool bent = layer.activation.row != 0, bows = curved(layer);
      q[l] = take(bows, chain.owed, owed, n);
      d1[l] = bows ? take(true, chain.slopes, sizes.slopes, n) : take(bent, chain.values, sizes.values, n);
      d2[l] = take(bows, chain.values, sizes.values, n);
      h[l] = take(l < chain.L - 1, chain.values, sizes.values, n);
      a[l] = take(bows, chain.adjoint, sizes.adjoint, n);
      delta[l] = take(true, chain.adjoint, sizes.adjoint, n);
    }
  }
};

// What one thread works in, and its part of the gradients.
template <class T>
struct ChainRoom {
  T *rows, *panels, *turn[2];  // [tile][ld]; [widest] in panels
  T* dweight[kMaxLayers];      // in strips
  T* dbias[kMaxLayers];
  std::int64_t ld;
  std::size_t bytes;

  ChainRoom(const Chain& chain, void* base) {
    Arena arena(base);
    const std::int64_t tile = round_up(chain.tile, kPanel<T>);
    std::int64_t widest = chain.layers[0].n_in;
    for (std::int64_t l = 0; l < chain.L; ++l) widest = std::max(widest, chain.layers[l].n_out);
    ld = apart_in_cache<T>(widest);
    rows = arena.take<T>(tile * ld);
    panels = arena.take<T>(tile * widest);
    for (T*& each : turn) each = arena.take<T>(tile * widest);
    for (std::int64_t l = 0; l < chain.L; ++l) {
      const Layer& layer = chain.layers[l];
      dweight[l] = layer.dweight ? arena.take<T>(Private<T>::gradient_size(layer)) : nullptr;
      dbias[l] = layer.dbias ? arena.take<T>(layer.n_out) : nullptr;
    }
    bytes = arena.used();
  }
};

template <class T>
class ChainTile {
  using V = Vec<T>;

 public:
  ChainTile(const Chain& chain, const Shared<T>& weights, const ChainRoom<T>& room)
      : chain_(chain), weights_(weights), room_(room), kept_(chain) {}

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    switch (chain_.pass) {
      case Pass::kValues:
        return values();
      case Pass::kGradient:
        return gradient();
      case Pass::kAlong:
        along();
        break;
      case Pass::kBack:
        back();
        break;
    }
    begun_ = true;
  }

 private:
  const Chain& chain_;
  const Shared<T>& weights_;
  const ChainRoom<T>& room_;
  const ChainKept<T> kept_;
  std::int64_t first_ = 0, M_ = 0;
  bool begun_ = false;  // whether gradients of weights hold a sum already

  std::int64_t last() const { return chain_.L - 1; }
  const Layer& layer(std::int64_t l) const { return chain_.layers[l]; }
  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }

  // The tile's part of what is kept of n features; tiles begin with a panel.
  T* part(T* kept, std::int64_t n) const { return kept ? kept + first_ * n : nullptr; }

  void values() {
    load(chain_.x, layer(0).n_in, room_.panels);
    const T* below = room_.panels;
    for (std::int64_t l = 0; l <= last(); ++l) {
      const std::int64_t n = layer(l).n_out;
      const Formula& formula = layer(l).activation;
      const auto activation = with_activation(formula.row, [](auto a) { return &activate<decltype(a), T>; });
      T* h = l < last() ? part(kept_.h[l], n) : room_.turn[0];
      T *d1 = part(kept_.d1[l], n), *d2 = part(kept_.d2[l], n);
      product<T>(weights_.forward[l], layer(l).n_in, below, panels(), weights_.bias[l], h,
                 [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (formula.row == 0) return;
                   const std::int64_t i = (panel * n + row) * kPanel<T>;
                   activation(h + i, d1 + i, d2 ? d2 + i : nullptr, rows * kPanel<T>, formula.parameters);
                 });
      below = h;
    }
    store(below, layer(last()).n_out);
  }

  void gradient() {
    const std::int64_t O = layer(last()).n_out;
    T *a = part(kept_.a[last()], O), *top = a ? a : part(kept_.delta[last()], O);
    load(chain_.given, O, top);
    for (std::int64_t panel = 0; panel < panels(); ++panel) through_slope(last(), panel, 0, O);
    for (std::int64_t l = last(); l >= 0; --l) {
      const std::int64_t n = layer(l).n_in;
      T* to = l == 0 ? room_.turn[0] : part(kept_.a[l - 1] ? kept_.a[l - 1] : kept_.delta[l - 1], n);
      product<T>(weights_.backward[l], layer(l).n_out, part(kept_.delta[l], layer(l).n_out), panels(), nullptr, to,
                 [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (l) through_slope(l - 1, panel, row, rows);
                 });
    }
    store(room_.turn[0], layer(0).n_in);
  }

  // delta of some rows of a panel, from a; or in its place
  void through_slope(std::int64_t l, std::int64_t panel, std::int64_t row, std::int64_t rows) const {
    const std::int64_t n = layer(l).n_out;
    const T *d1 = part(kept_.d1[l], n), *a = part(kept_.a[l], n);
    T* delta = part(kept_.delta[l], n);
    if (!d1) return;
    each(n, panel, row, rows,
         [&](std::int64_t i) { (V::load(d1 + i) * V::load((a ? a : delta) + i)).store(delta + i); });
  }

  // <g, c> = <u, J c>: one tangent along c against the delta at hand
  void along() {
    load(chain_.given, layer(0).n_in, room_.panels);
    const T* tangent = room_.panels;
    for (std::int64_t l = 0; l <= last(); ++l) {
      const std::int64_t n = layer(l).n_out, n_in = layer(l).n_in;
      const T *d1 = part(kept_.d1[l], n), *d2 = part(kept_.d2[l], n), *a = part(kept_.a[l], n);
      T *q = part(kept_.q[l], n), *z = room_.turn[l % 2];
      if (layer(l).dweight) {
        if (l) panels_to_rows(tangent, n_in, panels(), room_.rows, room_.ld);
        sum_outer(l, part(kept_.delta[l], n));
      }
      product<T>(weights_.forward[l], n_in, tangent, panels(), nullptr, z,
                 [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (!d1) return;
                   each(n, panel, row, rows, [&](std::int64_t i) {
                     const V z_dot = V::load(z + i);
                     if (q) (V::load(d2 + i) * z_dot * V::load(a + i)).store(q + i);
                     (V::load(d1 + i) * z_dot).store(z + i);
                   });
                 });
      tangent = z;
    }
    if (chain_.out) store(tangent, layer(last()).n_out);
  }

  void back() {
    const std::int64_t O = layer(last()).n_out;
    T *bar = room_.turn[0], *next = room_.turn[1];
    if (chain_.given) {
      load(chain_.given, O, bar);
    } else {
      std::fill_n(bar, panels() * O * kPanel<T>, T(0));
    }
    for (std::int64_t panel = 0; panel < panels(); ++panel) through(last(), bar, panel, 0, O);
    for (std::int64_t l = last(); l >= 0; --l) {
      if (layer(l).dweight) {
        if (l) {
          panels_to_rows(part(kept_.h[l - 1], layer(l).n_in), layer(l).n_in, panels(), room_.rows, room_.ld);
        } else {
          load(chain_.x, layer(0).n_in, room_.panels);
        }
        sum_outer(l, bar);
      }
      if (layer(l).dbias) sum_bias(l, bar);
      if (l == 0 && !chain_.out) return;
      product<T>(weights_.backward[l], layer(l).n_out, bar, panels(), nullptr, next,
                 [&](std::int64_t panel, std::int64_t row, std::int64_t rows) {
                   if (l) through(l - 1, next, panel, row, rows);
                 });
      std::swap(bar, next);
    }
    store(bar, layer(0).n_in);
  }

  // The adjoint of z of some rows of a panel, in the place of that of h
  void through(std::int64_t l, T* bar, std::int64_t panel, std::int64_t row, std::int64_t rows) const {
    const std::int64_t n = layer(l).n_out;
    const T *d1 = part(kept_.d1[l], n), *q = part(kept_.q[l], n);
    if (!d1) return;
    each(n, panel, row, rows, [&](std::int64_t i) {
      const V adjoint = V::load(d1 + i) * V::load(bar + i);
      (q ? adjoint + V::load(q + i) : adjoint).store(bar + i);
    });
  }

  // f(i) for each row of a panel from `row` on
  template <class F>
  static void each(std::int64_t n, std::int64_t panel, std::int64_t row, std::int64_t rows, F f) {
    const std::int64_t begin = (panel * n + row) * kPanel<T>;
    for (std::int64_t i = begin; i < begin + rows * kPanel<T>; i += kPanel<T>) f(i);
  }

  // The tile's rows of an array [N, n], as rows in the room and as panels
  void load(const void* array, std::int64_t n, T* to) {
    rows_apart(static_cast<const T*>(array) + first_ * n, n, n, M_, room_.rows, room_.ld);
    rows_to_panels(room_.rows, room_.ld, n, M_, to);
  }

  // The tile's rows of `out` from panels of n features
  void store(const T* from, std::int64_t n) const {
    panels_to_array(from, n, M_, static_cast<T*>(chain_.out) + first_ * n, n);
  }

  // The gradient of a layer's weights += z hᵀ, with h in the room's rows
  void sum_outer(std::int64_t l, const T* z) {
    const std::int64_t n_out = layer(l).n_out, n_in = layer(l).n_in;
    const Samples<T> samples{z, room_.rows, room_.ld, M_, kPanel<T>, (n_out - 1) * kPanel<T>};
    outer_to_strips(&samples, 1, n_out, n_in, !begun_, room_.dweight[l], n_in);
  }

  void sum_bias(std::int64_t l, const T* z) const {
    const std::int64_t n = layer(l).n_out;
    for (std::int64_t i = 0; i < n; ++i) {
      const T total = sum_samples(z + i * kPanel<T>, n * kPanel<T>, M_);
      room_.dbias[l][i] = begun_ ? room_.dbias[l][i] + total : total;
    }
  }
};
