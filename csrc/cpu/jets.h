// One tile of named derivatives: their streams through the layers and back (docs/math.md, section 15).
// Streams of one panel of samples lie side by side, [panel][stream][n][kPanel]: a block of rows of a layer's product is
// made for all of them, and what the activation makes of it follows while it is in the first-level cache.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class A, class T, bool kHigh>
void differentiate(const T* z, T* const* sigma, std::int64_t count, const double* parameters) {
  using V = Vec<T>;
  for (std::int64_t i = 0; i < count; i += V::kLanes) {
    const auto put = [&](int m, V value) {
      if (sigma[m]) value.store(sigma[m] + i);
    };
    if constexpr (kHigh) {
      const Jet<V> s = A::jet(V::load(z + i), parameters);
      put(0, s.value), put(1, s.d1), put(2, s.d2), put(3, s.d3), put(4, s.d4), put(5, s.d5);
    } else {
      const Derivatives<V> s = A::call(V::load(z + i), parameters);
      put(0, s.value), put(1, s.d1), put(2, s.d2), put(3, s.d3);
    }
  }
}

// What one thread works in: the arrays of a tile, and its part of the gradients. Marked [streams][n] they are
// [tile / kPanel][streams][n][kPanel], rows are [tile / kPanel][streams][kPanel][ld].
template <class T>
struct JetRoom {
  T *x_rows, *x;       // [1 + directions][D] what goes in
  T* h[kMaxLayers];    // [made][n]
  T* g[kMaxLayers];    // [kept][n]
  T *bar, *next_bar;   // [streams][n] adjoints of z of this layer and of the one below
  T *block, *scratch;  // [streams] and [slots] of a block of rows
  T** slots;
  T* rows;  // [streams][n] as rows
  LossRoom<T> loss;
  Samples<T>* samples;
  T* dweight[kMaxLayers];  // in strips
  T* dbias[kMaxLayers];
  std::int64_t ld_x, ld_rows;
  std::size_t bytes;

  JetRoom(const Jets& jets, void* base) {
    constexpr std::int64_t kLanes = Vec<T>::kLanes;
    Arena arena(base);
    const std::int64_t tile = round_up(jets.tile, kPanel<T>), inputs = 1 + jets.directions;
    const bool back = jets.gradients();
    std::int64_t widest = jets.D, streams = inputs, slots = 1;
    std::int64_t numbers = inputs * jets.D;  // of a sample, at most, in an array
    for (std::int64_t l = 0; l < jets.L; ++l) {
      const JetLayer& at = jets.layers[l];
      const int most = std::max(at.given, at.made);
      widest = std::max(widest, at.layer.n_out);
      streams = std::max<std::int64_t>(streams, most);
      numbers = std::max(numbers, most * at.layer.n_out);
      for (const Program* program : {&at.values, &at.forward, &at.adjoint}) {
        slots = std::max<std::int64_t>(slots, program->slots);
      }
    }
    // an odd number of vectors: rows a power of two apart would share the few sets of the first-level cache
    ld_rows = round_up(widest, kLanes) + (round_up(widest, kLanes) / kLanes % 2 ? 0 : kLanes);
    ld_x = round_up(jets.D, kLanes);
    x_rows = arena.take<T>(tile * inputs * ld_x);
    x = arena.take<T>(tile * inputs * jets.D);
    bar = arena.take<T>(back ? tile * numbers : 0);
    next_bar = arena.take<T>(back ? tile * numbers : 0);
    block = arena.take<T>(streams * kRows * kPanel<T>);
    scratch = arena.take<T>(slots * kRows * kPanel<T>);
    if (jets.loss) slots = std::max<std::int64_t>(slots, loss.take(*jets.loss, tile, arena));
    this->slots = arena.take<T*>(slots);
    rows = arena.take<T>(back ? tile * streams * ld_rows : 0);
    samples = arena.take<Samples<T>>(1 + streams);
    T* turns[2] = {nullptr, nullptr};
    for (std::int64_t l = 0; l < jets.L; ++l) {
      const JetLayer& at = jets.layers[l];
      const std::int64_t n = at.layer.n_out;
      if (!back && l < 2) turns[l] = arena.take<T>(tile * numbers);
      h[l] = back ? arena.take<T>(tile * at.made * n) : turns[l % 2];
      g[l] = back ? arena.take<T>(tile * at.kept * n) : nullptr;
      dweight[l] = back ? arena.take<T>(Private<T>::gradient_size(at.layer)) : nullptr;
      dbias[l] = back && at.layer.bias.data ? arena.take<T>(n) : nullptr;
    }
    bytes = arena.used();
  }
};

template <class T>
struct JetWeights {
  Matrix<T> forward[kMaxLayers], backward[kMaxLayers];  // W, Wᵀ, packed
  T* bias[kMaxLayers];
  std::size_t bytes;

  JetWeights(const Jets& jets, void* base) {
    Arena arena(base);
    for (std::int64_t l = 0; l < jets.L; ++l) {
      const Layer& layer = jets.layers[l].layer;
      const bool back = jets.gradients() && (l > 0 || jets.dx || jets.dv);
      const std::int64_t size = layer.n_out * layer.n_in;
      forward[l] = {arena.take<T>(size), layer.n_out, layer.n_in, 1, 0, true};
      backward[l] = {back ? arena.take<T>(size) : nullptr, layer.n_in, layer.n_out, 1, 0, true};
      bias[l] = layer.bias.data ? arena.take<T>(layer.n_out) : nullptr;
    }
    bytes = arena.used();
  }
};

template <class T>
class JetTile {
  using V = Vec<T>;

 public:
  JetTile(const Jets& jets, const JetWeights<T>& weights, const JetRoom<T>& room)
      : jets_(jets), weights_(weights), room_(room) {}

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    load();
    for (std::int64_t l = 0; l < jets_.L; ++l) forward(l);
    if (jets_.loss) compare();
    if (!jets_.gradients()) return jets_.loss ? void() : store();
    seed();
    for (std::int64_t l = jets_.L - 1; l >= 0; --l) {
      sum_gradients(l);
      below(l);
      std::swap(bar_, next_bar_);
    }
  }

 private:
  const Jets& jets_;
  const JetWeights<T>& weights_;
  const JetRoom<T>& room_;
  std::int64_t first_ = 0, M_ = 0;
  T *bar_ = nullptr, *next_bar_ = nullptr;
  bool begun_ = false;  // whether gradients of weights hold a sum already

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t inputs() const { return 1 + jets_.directions; }
  const JetLayer& layer(std::int64_t l) const { return jets_.layers[l]; }

  // The samples of a panel
  std::int64_t samples(std::int64_t panel) const { return std::min<std::int64_t>(kPanel<T>, M_ - panel * kPanel<T>); }

  // x and directions, as rows and as panels
  void load() {
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      for (std::int64_t s = 0; s < inputs(); ++s) {
        T* rows = room_.x_rows + (panel * inputs() + s) * kPanel<T> * room_.ld_x;
        zero(rows, kPanel<T> * room_.ld_x);
        for (std::int64_t m = 0; m < samples(panel); ++m) {
          const std::int64_t n = first_ + panel * kPanel<T> + m;
          for (std::int64_t d = 0; d < jets_.D; ++d) {
            rows[m * room_.ld_x + d] = s ? at<T>(jets_.v, s - 1, n, d) : at<T>(jets_.x, n, d);
          }
        }
        rows_to_panels(rows, room_.ld_x, jets_.D, samples(panel),
                       room_.x + (panel * inputs() + s) * jets_.D * kPanel<T>);
      }
    }
  }

  // Blocks of rows of A times all streams of each panel, b [streams][K]; `done(panel, row, rows)` finds them in
  // room_.block, [streams][rows]
  template <class Done>
  void product_of_streams(const Matrix<T>& a, std::int64_t K, const T* b, std::int64_t streams, Done done) {
    using Ld = Constant<kPanel<T>>;
    const RowBlocks blocks(a.rows);
    for (std::int64_t block = 0; block < blocks.blocks; ++block) {
      const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
      for (std::int64_t panel = 0; panel < panels(); ++panel) {
        for (std::int64_t s = 0; s < streams; s += 2) {
          product_block_of<T, Ld>(R, streams - s > 1, true)(
              a.data + row * a.K, R, b + (panel * streams + s) * K * kPanel<T>, Ld(), K * kPanel<T>, K, nullptr,
              room_.block + s * R * kPanel<T>, R * kPanel<T>);
        }
        done(panel, row, R);
      }
    }
  }

  // Where row `row` of the first of so many streams of a panel is
  static T* place(T* array, std::int64_t panel, std::int64_t streams, std::int64_t n, std::int64_t row) {
    return array + (panel * streams * n + row) * kPanel<T>;
  }

  static void zero(T* array, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) array[i] = 0;
  }

  // R rows of so many streams, which are `apart` and `to_apart` from each other
  static void copy(const T* from, std::int64_t apart, std::int64_t streams, std::int64_t R, T* to,
                   std::int64_t to_apart) {
    for (std::int64_t s = 0; s < streams; ++s, from += apart * kPanel<T>, to += to_apart * kPanel<T>) {
      for (std::int64_t i = 0; i < R * kPanel<T>; i += kPanel<T>) V::load(from + i).store(to + i);
    }
  }

  // The next slots: `count` of them from `from` on, `apart` from each other
  void slots(T* from, std::int64_t count, std::int64_t apart) {
    for (std::int64_t s = 0; s < count; ++s) room_.slots[slots_++] = from + s * apart * kPanel<T>;
  }

  void forward(std::int64_t l) {
    const JetLayer& here = layer(l);
    const std::int64_t n = here.layer.n_out;
    const Program& program = jets_.gradients() ? here.forward : here.values;
    const int kept = jets_.gradients() ? here.kept : 0;
    const bool high = program.sigma[4] >= 0 || program.sigma[5] >= 0;
    const auto activation = with_activation(here.layer.activation.row, [&](auto a) {
      return high ? &differentiate<decltype(a), T, true> : &differentiate<decltype(a), T, false>;
    });
    product_of_streams(weights_.forward[l], here.layer.n_in, l ? room_.h[l - 1] : room_.x, here.given,
                       [&](std::int64_t panel, std::int64_t row, std::int64_t R) {
                         T *z = room_.block, *h = place(room_.h[l], panel, here.made, n, row);
                         for (std::int64_t i = 0; weights_.bias[l] && here.value && i < R; ++i) {
                           (V::load(z + i * kPanel<T>) + V(double(weights_.bias[l][row + i]))).store(z + i * kPanel<T>);
                         }
                         if (!program.slots) return copy(z, R, here.made, R, h, n);
                         slots_ = 0;
                         slots(z, here.given, R);
                         slots(h, here.made, n);
                         if (kept) slots(place(room_.g[l], panel, kept, n, row), kept, n);
                         slots(room_.scratch, program.slots - slots_, R);
                         T* sigma[kDerivatives];
                         for (int m = 0; m < kDerivatives; ++m) {
                           sigma[m] = program.sigma[m] < 0 ? nullptr : room_.slots[program.sigma[m]];
                         }
                         activation(z, sigma, R * kPanel<T>, here.layer.activation.parameters);
                         execute(program, R, room_.slots);
                       });
  }

  // f(where output `column` of a panel of a stream of the last layer is, result, panel, coefficient)
  template <class F>
  void each_named(T* of, F f) const {
    const int made = layer(jets_.L - 1).made;
    for (std::int64_t i = 0; i < jets_.count_named; ++i) {
      const Named& named = jets_.named[i];
      for (std::int64_t panel = 0; panel < panels(); ++panel) {
        f(place(of, panel, made, jets_.O, 0) + (named.stream * jets_.O + named.column) * kPanel<T>, named.result, panel,
          T(named.coefficient));
      }
    }
  }

  void store() {
    T* out = static_cast<T*>(jets_.out) + first_;
    for (std::int64_t r = 0; r < jets_.results; ++r) zero(out + r * jets_.N, M_);
    each_named(room_.h[jets_.L - 1], [&](const T* h, std::int64_t result, std::int64_t panel, T c) {
      T* to = out + result * jets_.N + panel * kPanel<T>;
      for (std::int64_t m = 0; m < samples(panel); ++m) to[m] += c * h[m];
    });
  }

  // The loss of the results, and their cotangents
  void compare() {
    const LossTile<T> loss(*jets_.loss, room_.loss, first_, M_);
    loss.load();
    for (std::int64_t r = 0; r < jets_.results; ++r) zero(loss.slot(r), panels() * kPanel<T>);
    each_named(room_.h[jets_.L - 1], [&](const T* h, std::int64_t result, std::int64_t panel, T c) {
      T* to = loss.slot(result) + panel * kPanel<T>;
      for (int m = 0; m < kPanel<T>; ++m) to[m] += c * h[m];
    });
    loss.run(room_.slots);
  }

  // The adjoint of the last layer's z, from the cotangents of the results
  void seed() {
    const JetLayer& top = layer(jets_.L - 1);
    bar_ = room_.bar;
    next_bar_ = room_.next_bar;
    T* h_bar = top.adjoint.slots ? next_bar_ : bar_;
    zero(h_bar, panels() * top.made * jets_.O * kPanel<T>);
    each_named(h_bar, [&](T* bar, std::int64_t result, std::int64_t panel, T c) {
      const int slot = jets_.loss ? jets_.loss->bars[result] : 0;
      if (slot < 0) return;
      const T* from =
          jets_.loss ? room_.loss.slot(slot) : static_cast<const T*>(jets_.cotangents) + result * jets_.N + first_;
      from += panel * kPanel<T>;
      for (std::int64_t m = 0; m < samples(panel); ++m) bar[m] += c * from[m];
    });
    if (!top.adjoint.slots) return;
    const RowBlocks blocks(jets_.O);
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      for (std::int64_t b = 0; b < blocks.blocks; ++b) {
        const std::int64_t row = blocks.begin(b), R = blocks.begin(b + 1) - row;
        through(jets_.L - 1, place(h_bar, panel, top.made, jets_.O, row), jets_.O, bar_, panel, row, R);
      }
    }
  }

  // z̄ of R rows of a layer, from h̄, whose streams are `apart` from each other
  void through(std::int64_t l, T* h_bar, std::int64_t apart, T* z_bar, std::int64_t panel, std::int64_t row,
               std::int64_t R) {
    const JetLayer& here = layer(l);
    const std::int64_t n = here.layer.n_out;
    T* to = place(z_bar, panel, here.given, n, row);
    if (!here.adjoint.slots) return copy(h_bar, apart, here.given, R, to, n);
    slots_ = 0;
    slots(h_bar, here.made, apart);
    slots(place(room_.g[l], panel, here.kept, n, row), here.kept, n);
    slots(to, here.given, n);
    execute(here.adjoint, R, room_.slots);
  }

  void sum_gradients(std::int64_t l) {
    const JetLayer& here = layer(l);
    const std::int64_t n = here.layer.n_out, n_in = here.layer.n_in, streams = here.given;
    T* rows = room_.x_rows;
    if (l > 0) {
      rows = room_.rows;
      panels_to_rows(room_.h[l - 1], n_in, streams * panels(), rows, room_.ld_rows);
    }
    const std::int64_t ld = l ? room_.ld_rows : room_.ld_x, next = (n - 1) * kPanel<T>;
    const std::int64_t full = M_ / kPanel<T>, rest = M_ % kPanel<T>;  // what lanes beyond the samples have is no number
    Samples<T>* to = room_.samples;
    if (full) *to++ = {bar_, rows, ld, full * streams * kPanel<T>, kPanel<T>, next};
    for (std::int64_t s = 0; rest && s < streams; ++s) {
      const std::int64_t stream = full * streams + s;
      *to++ = {bar_ + stream * n * kPanel<T>, rows + stream * kPanel<T> * ld, ld, rest, kPanel<T>, next};
    }
    outer_to_strips(room_.samples, to - room_.samples, n, n_in, !begun_, room_.dweight[l], n_in);
    if (l == 0) begun_ = true;
    if (!room_.dbias[l] || !here.value) return;
    for (std::int64_t i = 0; i < n; ++i) {
      V lanes(0.0);
      T total = 0;
      for (std::int64_t panel = 0; panel < panels(); ++panel) {
        const T* z_bar = place(bar_, panel, streams, n, i);
        if (samples(panel) == kPanel<T>) {
          lanes = lanes + V::load(z_bar);
        } else {
          for (std::int64_t m = 0; m < samples(panel); ++m) total += z_bar[m];
        }
      }
      room_.dbias[l][i] += total + sum(lanes);
    }
  }

  // The adjoint of what layer l was given: of z below it, or of the inputs
  void below(std::int64_t l) {
    const JetLayer& here = layer(l);
    if (l == 0 && !jets_.dx && !jets_.dv) return;
    product_of_streams(weights_.backward[l], here.layer.n_out, bar_, here.given,
                       [&](std::int64_t panel, std::int64_t row, std::int64_t R) {
                         if (l) return through(l - 1, room_.block, R, next_bar_, panel, row, R);
                         for (std::int64_t s = 0; s < here.given; ++s) {
                           T* to = static_cast<T*>(s ? jets_.dv : jets_.dx);
                           if (to) give(room_.block + s * R * kPanel<T>, to, s ? s - 1 : 0, panel, row, R);
                         }
                       });
  }

  // to[stream][sample][row ...] = block[row][sample]
  void give(const T* block, T* to, std::int64_t stream, std::int64_t panel, std::int64_t row, std::int64_t R) const {
    T* at = to + (stream * jets_.N + first_ + panel * kPanel<T>)*jets_.D + row;
    for (std::int64_t m = 0; m < samples(panel); ++m, at += jets_.D) {
      for (std::int64_t i = 0; i < R; ++i) at[i] = block[i * kPanel<T> + m];
    }
  }

  std::int64_t slots_ = 0;  // of those of a block that are known
};
