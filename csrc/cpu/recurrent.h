// One tile of a recurrent layer in one of its passes (csrc/recurrent.h), step after step.
//
// A cell has the gates r = sigmoid(a_r), z = sigmoid(a_z), n = tanh(a_n), where a_n = b_n + r m; a_r, a_z, b_n and m
// are sums of products with the inputs and with the state h' before it. It gives h = n + z (h' - n).
//
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// What a cell keeps, and what is owed to each of these, or rather to a_r, a_z, a_n, m and h'
template <class V>
struct CellValues {
  V r, z, n, m, before;

  SK_INLINE V slope_r() const { return r * (V(1.0) - r); }
  SK_INLINE V slope_z() const { return z * (V(1.0) - z); }
  SK_INLINE V slope_n() const { return V(1.0) - n * n; }
};

// Tangents of a_r, a_z, a_n, m and h'
template <class V>
struct CellTangents {
  V r, z, n, m, before;

  SK_INLINE V along(const CellValues<V>& v) const {
    return (V(1.0) - v.z) * v.slope_n() * n + v.z * before + v.slope_z() * z * (v.before - v.n);
  }
};

// Adjoints of a_r, a_z, a_n and m, and that of h' but for what the products owe it
template <class V>
struct CellAdjoints {
  V r, z, n, m, before;

  SK_INLINE CellAdjoints(const CellValues<V>& v, V bar, const CellValues<V>& owed) {
    n = bar * (V(1.0) - v.z) * v.slope_n() + owed.n;
    z = bar * (v.before - v.n) * v.slope_z() + owed.z;
    r = n * v.m * v.slope_r() + owed.r;
    m = n * v.r + owed.m;
    before = bar * v.z + owed.before;
  }
};

// Adds what bar · (the tangent of h), of which `n` is the adjoint of a_n's tangent, owes the values.
template <class V>
SK_INLINE void owe(const CellValues<V>& v, const CellTangents<V>& t, V bar, V n, CellValues<V>& owed) {
  const V one(1.0), two(2.0), moved = v.slope_z() * t.z;
  owed.r = owed.r + n * v.slope_r() * ((one - two * v.r) * t.r * v.m + t.m);
  owed.z = owed.z + bar * v.slope_z() * (t.before - v.slope_n() * t.n + (one - two * v.z) * t.z * (v.before - v.n));
  owed.n = owed.n - bar * v.slope_n() * (two * (one - v.z) * v.n * t.n + moved);
  owed.m = owed.m + n * v.slope_r() * t.r;
  owed.before = owed.before + bar * moved;
}

// What one thread works in, and its part of the gradients. Arrays [n] are panels of each stream: those of the values,
// if they go through it, and then of each tangent.
template <class T>
struct RecurrentRoom {
  T *rows, *inputs, *state, *next;  // [tile][ld]; [I], [H], [H]
  T* gates[Recurrent::L];           // [3 H], of inputs and of states
  T* dweight[Recurrent::L];         // in strips
  T* dbias[Recurrent::L];
  std::int64_t ld;
  std::size_t bytes;

  RecurrentRoom(const Recurrent& work, void* base) {
    Arena arena(base);
    const std::int64_t tile = round_up(work.tile, kPanel<T>), wide = tile * work.streams();
    ld = apart_in_cache<T>(std::max(work.I, work.H));
    rows = arena.take<T>(tile * ld);
    inputs = arena.take<T>(wide * work.I);
    state = arena.take<T>(wide * work.H);
    next = arena.take<T>(wide * work.H);
    for (std::int64_t l = 0; l < work.L; ++l) {
      const Layer& layer = work.layers[l];
      gates[l] = arena.take<T>(wide * layer.n_out);
      dweight[l] = layer.dweight ? arena.take<T>(Private<T>::gradient_size(layer)) : nullptr;
      dbias[l] = layer.dbias ? arena.take<T>(layer.n_out) : nullptr;
    }
    bytes = arena.used();
  }
};

template <class T>
class RecurrentTile {
  using V = Vec<T>;

 public:
  RecurrentTile(const Recurrent& work, const Shared<T>& weights, const RecurrentRoom<T>& room)
      : work_(work), weights_(weights), room_(room) {}

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    work_.backward() ? back() : forward();
  }

 private:
  const Recurrent& work_;
  const Shared<T>& weights_;
  const RecurrentRoom<T>& room_;
  std::int64_t first_ = 0, M_ = 0;
  bool begun_[Recurrent::L] = {};  // whether gradients of weights hold a sum already

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t panels_of_all() const { return (work_.N + kPanel<T> - 1) / kPanel<T>; }
  bool is_value(std::int64_t stream) const { return work_.of_values() && stream == 0; }
  std::int64_t tangent_of(std::int64_t stream) const { return stream - work_.of_values(); }
  T* of_stream(T* array, std::int64_t stream, std::int64_t n) const {
    return array + stream * panels() * n * kPanel<T>;
  }

  // What is kept of a panel at a step, arrays of H
  T* kept(void* base, std::int64_t arrays, std::int64_t panel, std::int64_t step, std::int64_t s = 0) const {
    if (!base) return nullptr;
    const std::int64_t place = (s * panels_of_all() + first_ / kPanel<T> + panel) * work_.T + step;
    return static_cast<T*>(base) + place * arrays * work_.H * kPanel<T>;
  }

  // Five arrays of H at unit j, and back
  template <class Five>
  SK_INLINE Five read(const T* from, std::int64_t j) const {
    const std::int64_t next = work_.H * kPanel<T>;
    from += j * kPanel<T>;
    return {V::load(from), V::load(from + next), V::load(from + 2 * next), V::load(from + 3 * next),
            V::load(from + 4 * next)};
  }
  template <class Five>
  SK_INLINE void write(const Five& five, T* to, std::int64_t j) const {
    const std::int64_t next = work_.H * kPanel<T>;
    to += j * kPanel<T>;
    five.r.store(to);
    five.z.store(to + next);
    five.n.store(to + 2 * next);
    five.m.store(to + 3 * next);
    five.before.store(to + 4 * next);
  }
  // The gate `which` of unit j in a panel of gates
  SK_INLINE T* gate(T* gates, std::int64_t panel, int which, std::int64_t j) const {
    return gates + ((panel * 3 + which) * work_.H + j) * kPanel<T>;
  }

  // f(panel, step's kept values, unit j)
  template <class F>
  void each_cell(std::int64_t step, F f) const {
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      T* values = kept(work_.values, work_.kValueArrays, panel, step);
      for (std::int64_t j = 0; j < work_.H; ++j) f(panel, values, j);
    }
  }

  void forward() {
    const std::int64_t I = work_.I, H = work_.H;
    const bool along = work_.pass == RecurrentPass::kAlong;
    std::fill_n(room_.state, work_.streams() * panels() * H * kPanel<T>, T(0));
    if (work_.of_values()) load_rows(static_cast<const T*>(work_.first) + first_ * H, H, H, room_.state);
    for (std::int64_t step = 0; step < work_.T; ++step) {
      for (std::int64_t s = 0; s < work_.streams(); ++s) {
        load(input_of(s), step, I, of_stream(room_.inputs, s, I));
      }
      if (along && room_.dweight[0]) sum_along(step);
      multiply(0, I, room_.inputs);
      multiply(1, H, room_.state);
      along ? cells_along(step) : cells(step);
      for (std::int64_t s = 0; s < work_.streams(); ++s) store(of_stream(room_.state, s, H), output_of(s), step, H);
    }
  }

  const T* input_of(std::int64_t stream) const {
    if (is_value(stream)) return static_cast<const T*>(work_.x);
    const auto* d = static_cast<const T*>(work_.pass == RecurrentPass::kAlong ? work_.given : work_.d);
    return d + tangent_of(stream) * work_.N * work_.T * work_.I;
  }
  T* output_of(std::int64_t stream) const {
    if (is_value(stream) || !work_.of_values()) return static_cast<T*>(work_.out);
    T* moved = static_cast<T*>(work_.out_moved);
    return moved ? moved + tangent_of(stream) * work_.N * work_.T * (work_.backward() ? work_.I : work_.H) : nullptr;
  }

  // Gates of inputs or states: to those of values a bias is added
  void multiply(std::int64_t l, std::int64_t K, const T* below) const {
    const std::int64_t of_values = work_.of_values() ? panels() : 0, others = work_.others() * panels();
    const auto nothing = [](std::int64_t, std::int64_t, std::int64_t) {};
    T* gates = room_.gates[l];
    if (of_values) product<T>(weights_.forward[l], K, below, of_values, weights_.bias[l], gates, nothing);
    if (!others) return;
    product<T>(weights_.forward[l], K, below + of_values * K * kPanel<T>, others, nullptr,
               gates + of_values * 3 * work_.H * kPanel<T>, nothing);
  }

  void cells(std::int64_t step) const {
    each_cell(step, [&](std::int64_t panel, T* values, std::int64_t j) {
      const auto sum = [&](int which) {
        return V::load(gate(room_.gates[0], panel, which, j)) + V::load(gate(room_.gates[1], panel, which, j));
      };
      T* state = room_.state + (panel * work_.H + j) * kPanel<T>;
      CellValues<V> v;
      v.r = sigmoid(sum(0));
      v.z = sigmoid(sum(1));
      v.m = V::load(gate(room_.gates[1], panel, 2, j));
      v.n = tanh(V::load(gate(room_.gates[0], panel, 2, j)) + v.r * v.m);
      v.before = V::load(state);
      if (values) write(v, values, j);
      (v.n + v.z * (v.before - v.n)).store(state);
      for (std::int64_t s = 0; s < work_.S; ++s) {
        T* tangents = kept(work_.tangents, work_.kValueArrays, panel, step, s);
        const CellTangents<V> t = tangent(1 + s, panel, j, v);
        if (tangents) write(t, tangents, j);
      }
    });
  }

  // What gates and the state of a stream of tangents are, of which it makes the next state
  SK_INLINE CellTangents<V> tangent(std::int64_t stream, std::int64_t panel, std::int64_t j,
                                    const CellValues<V>& v) const {
    const std::int64_t at = stream * panels() + panel;
    const auto sum = [&](int which) {
      return V::load(gate(room_.gates[0], at, which, j)) + V::load(gate(room_.gates[1], at, which, j));
    };
    T* state = room_.state + (at * work_.H + j) * kPanel<T>;
    CellTangents<V> t;
    t.r = sum(0);
    t.z = sum(1);
    t.m = V::load(gate(room_.gates[1], at, 2, j));
    t.n = V::load(gate(room_.gates[0], at, 2, j)) + v.slope_r() * t.r * v.m + v.r * t.m;
    t.before = V::load(state);
    t.along(v).store(state);
    return t;
  }

  void cells_along(std::int64_t step) const {
    const std::int64_t H = work_.H;
    each_cell(step, [&](std::int64_t panel, T* values, std::int64_t j) {
      const auto v = read<CellValues<V>>(values, j);
      const CellTangents<V> t = tangent(0, panel, j, v);
      T* to = kept(work_.owed, work_.kValueArrays, panel, step);
      if (!to) return;
      const T* adjoint = kept(work_.adjoint, work_.kGradientArrays, panel, step) + j * kPanel<T>;
      CellValues<V> owed{V(0.0), V(0.0), V(0.0), V(0.0), V(0.0)};
      owe(v, t, V::load(adjoint + 3 * H * kPanel<T>), V::load(adjoint + 2 * H * kPanel<T>), owed);
      write(owed, to, j);
    });
  }

  // The gradients of weights from the adjoints that a gradient kept, inputs that are c, and states that are its
  // tangents
  void sum_along(std::int64_t step) {
    const std::int64_t H = work_.H, each = 3 * H * kPanel<T>;
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      const T* adjoint = kept(work_.adjoint, work_.kGradientArrays, panel, step);
      const T* values = kept(work_.values, work_.kValueArrays, panel, step);
      std::copy_n(adjoint, each, room_.gates[0] + panel * each);
      std::copy_n(adjoint, 2 * H * kPanel<T>, room_.gates[1] + panel * each);
      for (std::int64_t j = 0; j < H; ++j) {  // that of m from that of a_n
        (V::load(adjoint + (2 * H + j) * kPanel<T>) * V::load(values + j * kPanel<T>))
            .store(gate(room_.gates[1], panel, 2, j));
      }
    }
    sum_outer(0, room_.gates[0]);  // of the inputs at hand, which are still there as rows
    panels_to_rows(room_.state, H, panels(), room_.rows, room_.ld);
    sum_outer(1, room_.gates[1]);
  }

  void back() {
    const std::int64_t I = work_.I, H = work_.H, streams = work_.streams();
    const std::int64_t size = streams * panels() * H * kPanel<T>;
    const auto nothing = [](std::int64_t, std::int64_t, std::int64_t) {};
    std::fill_n(room_.state, size, T(0));
    for (std::int64_t step = work_.T - 1; step >= 0; --step) {
      for (std::int64_t s = 0; s < streams; ++s) {
        const T* bar = adjoint_of(s);
        if (!bar) continue;
        T *state = of_stream(room_.state, s, H), *given = room_.next;
        load(bar, step, H, given);
        add(given, panels() * H, state);
      }
      cells_back(step);
      for (std::int64_t s = 0; s < streams && room_.dweight[0]; ++s) sum_back(step, s);
      if (room_.dbias[0]) sum_bias();
      if (step > 0) {
        product<T>(weights_.backward[1], 3 * H, room_.gates[1], streams * panels(), nullptr, room_.next, nothing);
        add(room_.next, streams * panels() * H, room_.state);
      }
      if (!work_.out && !work_.out_moved) continue;
      product<T>(weights_.backward[0], 3 * H, room_.gates[0], streams * panels(), nullptr, room_.inputs, nothing);
      for (std::int64_t s = 0; s < streams; ++s) store(of_stream(room_.inputs, s, I), output_of(s), step, I);
    }
  }

  const T* adjoint_of(std::int64_t stream) const {
    if (is_value(stream) || !work_.of_values()) return static_cast<const T*>(work_.given);
    return static_cast<const T*>(work_.moved) + tangent_of(stream) * work_.N * work_.T * work_.H;
  }

  static void add(const T* from, std::int64_t vectors, T* to) {
    for (std::int64_t i = 0; i < vectors * kPanel<T>; i += kPanel<T>)
      (V::load(to + i) + V::load(from + i)).store(to + i);
  }

  void cells_back(std::int64_t step) const {
    const std::int64_t H = work_.H;
    const CellValues<V> none{V(0.0), V(0.0), V(0.0), V(0.0), V(0.0)};
    each_cell(step, [&](std::int64_t panel, T* values, std::int64_t j) {
      const auto v = read<CellValues<V>>(values, j);
      const T* kept_owed = kept(work_.owed, work_.kValueArrays, panel, step);
      CellValues<V> owed = kept_owed ? read<CellValues<V>>(kept_owed, j) : none;
      const auto through = [&](std::int64_t stream, const CellValues<V>& owed_to_it) {
        const std::int64_t at = stream * panels() + panel;
        T* state = room_.state + (at * H + j) * kPanel<T>;
        const CellAdjoints<V> bars(v, V::load(state), owed_to_it);
        for (T* gates : room_.gates) {
          bars.r.store(gate(gates, at, 0, j));
          bars.z.store(gate(gates, at, 1, j));
        }
        bars.n.store(gate(room_.gates[0], at, 2, j));
        bars.m.store(gate(room_.gates[1], at, 2, j));
        bars.before.store(state);
        return bars.n;
      };
      for (std::int64_t s = 0; s < work_.others(); ++s) {
        const std::int64_t stream = s + work_.of_values();
        const V bar = V::load(room_.state + ((stream * panels() + panel) * H + j) * kPanel<T>);
        const V n = through(stream, none);
        if (work_.tangents) {
          const T* tangents = kept(work_.tangents, work_.kValueArrays, panel, step, s);
          owe(v, read<CellTangents<V>>(tangents, j), bar, n, owed);
        } else {
          T* adjoint = kept(work_.adjoint, work_.kGradientArrays, panel, step) + j * kPanel<T>;
          for (int which = 0; which < 3; ++which) {
            V::load(gate(room_.gates[0], panel, which, j)).store(adjoint + which * H * kPanel<T>);
          }
          bar.store(adjoint + 3 * H * kPanel<T>);
        }
      }
      if (work_.of_values()) through(0, owed);
    });
  }

  // The gradients of weights from the adjoints at hand of a stream
  void sum_back(std::int64_t step, std::int64_t stream) {
    const std::int64_t I = work_.I, H = work_.H;
    load_rows_of(input_of(stream), step, I);
    sum_outer(0, of_stream(room_.gates[0], stream, 3 * H));
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      const T* from = is_value(stream) ? kept(work_.values, work_.kValueArrays, panel, step)
                                       : kept(work_.tangents, work_.kValueArrays, panel, step, tangent_of(stream));
      panels_to_rows(from + 4 * H * kPanel<T>, H, 1, room_.rows + panel * kPanel<T> * room_.ld, room_.ld);
    }
    sum_outer(1, of_stream(room_.gates[1], stream, 3 * H));
  }

  void sum_outer(std::int64_t l, const T* z) {
    const std::int64_t n_out = 3 * work_.H, n_in = work_.layers[l].n_in;
    const Samples<T> samples{z, room_.rows, room_.ld, M_, kPanel<T>, (n_out - 1) * kPanel<T>};
    outer_to_strips(&samples, 1, n_out, n_in, !begun_[l], room_.dweight[l], n_in);
    begun_[l] = true;
  }

  void sum_bias() const {
    const std::int64_t n = 3 * work_.H;
    for (std::int64_t l = 0; l < work_.L; ++l) {
      for (std::int64_t i = 0; i < n; ++i) {
        room_.dbias[l][i] += sum_samples(room_.gates[l] + i * kPanel<T>, n * kPanel<T>, M_);
      }
    }
  }

  // Where the tile's samples of a sequence's step begin, and how far it is from one to the next
  std::int64_t place(std::int64_t step, std::int64_t n) const {
    return work_.steps_first ? (step * work_.N + first_) * n : (first_ * work_.T + step) * n;
  }
  std::int64_t apart(std::int64_t n) const { return work_.steps_first ? n : work_.T * n; }

  void load(const T* sequence, std::int64_t step, std::int64_t n, T* to) const {
    load_rows(sequence + place(step, n), apart(n), n, to);
  }
  void load_rows_of(const T* sequence, std::int64_t step, std::int64_t n) const {
    rows_apart(sequence + place(step, n), apart(n), n, M_, room_.rows, room_.ld);
  }
  void load_rows(const T* from, std::int64_t stride, std::int64_t n, T* to) const {
    rows_apart(from, stride, n, M_, room_.rows, room_.ld);
    rows_to_panels(room_.rows, room_.ld, n, M_, to);
  }
  void store(const T* panels, T* sequence, std::int64_t step, std::int64_t n) const {
    if (sequence) panels_to_array(panels, n, M_, sequence + place(step, n), apart(n));
  }
};
