// One tile of named derivatives: their streams through the layers and back (docs/math.md, section 15).
// Streams of one panel of samples lie side by side, [panel][stream][n][kPanel]: a block of rows of a layer's product is
// made for all of them, and what the activation makes of it follows while it is in the first-level cache.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class A, class T, bool kHigh>
SK_INLINE void differentiate_by(const T* z, T* const* sigma, std::int64_t count, const double* parameters) {
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

template <class A, class T, bool kHigh>
void differentiate(const T* z, T* const* sigma, std::int64_t count, const double* parameters) {
  with_usual<A>(parameters, [=](const double* usual) { differentiate_by<A, T, kHigh>(z, sigma, count, usual); });
}

// Up to so many streams two panels go through a product at once; and so many blocks of rows of a stream are made before
// an activation sees them, as few enough to stay in the first-level cache.
constexpr std::int64_t kFew = 8, kBlocks = 16;

struct AtOnce {
  std::int64_t panels, blocks;
  explicit AtOnce(std::int64_t streams)
      : panels(streams <= kFew ? 2 : 1), blocks(std::max<std::int64_t>(1, kBlocks / (panels * streams))) {}
};

// What one thread works in: the arrays of a tile, and its part of the gradients. Marked [streams][n] they are
// [tile / kPanel][streams][n][kPanel], rows are [tile / kPanel][streams][kPanel][ld].
template <class T>
struct JetRoom {
  T *x_rows, *x;       // [inputs][D] what goes in
  T* frames;           // all orthonormal directions so far
  T* h[kMaxLayers];    // [made][n], of all samples where the results leave them for their cotangents
  T* g[kMaxLayers];    // [kept][n]
  T *bar, *next_bar;   // [streams][n] adjoints of z of this layer and of the one below
  T *block, *scratch;  // [streams] and [slots] of a block of rows
  T** slots;
  T* rows;  // [streams][n] as rows
  LossRoom<T> loss;
  TermsRoom<T> terms;
  T* none;  // [O] second derivatives of a student without a curve
  Samples<T>* samples;
  T* dweight[kMaxLayers];  // in strips
  T* dbias[kMaxLayers];
  std::int64_t ld_x, ld_rows;
  std::size_t bytes;

  JetRoom(const Jets& jets, void* base) {
    constexpr std::int64_t kLanes = Vec<T>::kLanes;
    Arena arena(base);
    const std::int64_t tile = round_up(jets.tile, kPanel<T>), inputs = inputs_of(jets);
    const bool framed = jets.along.distribution == Distribution::kOrthonormal;
    const bool back = jets.gradients();
    std::int64_t widest = jets.D, streams = 1, slots = 1, scratch_slots = 1;
    std::int64_t numbers = 0;  // of a sample, at most, in an array
    for (std::int64_t l = 0; l < jets.L; ++l) {
      const JetLayer& at = jets.layers[l];
      const std::int64_t most = std::max(at.given, at.made);
      widest = std::max(widest, at.layer.n_out);
      streams = std::max(streams, most);
      numbers = std::max(numbers, most * at.layer.n_out);
      for (const Program* program : {&at.values, &at.forward, &at.adjoint}) {
        slots = std::max<std::int64_t>(slots, program->slots);
        scratch_slots = std::max(scratch_slots, program->slots * AtOnce(at.given).blocks);
      }
    }
    ld_rows = apart_in_cache<T>(widest);
    ld_x = round_up(jets.D, kLanes);
    x_rows = arena.take<T>(tile * inputs * ld_x);
    x = arena.take<T>(tile * inputs * jets.D);
    frames = arena.take<T>(framed ? tile * jets.P * jets.W : 0);
    bar = arena.take<T>(back ? tile * numbers : 0);
    next_bar = arena.take<T>(back ? tile * numbers : 0);
    block = arena.take<T>(std::max(streams, kBlocks) * kRows * kPanel<T>);
    scratch = arena.take<T>(scratch_slots * kRows * kPanel<T>);
    if (jets.step) terms.take(*jets.step, tile, jets.directions, arena);
    none = arena.take<T>(jets.step ? jets.O * kPanel<T> : 0);
    if (jets.loss) slots = std::max<std::int64_t>(slots, loss.take(*jets.loss, tile, arena));
    this->slots = arena.take<T*>(slots);
    rows = arena.take<T>(back ? tile * streams * ld_rows : 0);
    samples = arena.take<Samples<T>>(tile / kPanel<T> + streams);
    T *turns[2] = {nullptr, nullptr}, *between = static_cast<T*>(jets.between);
    const std::int64_t all = round_up(jets.N, kPanel<T>);
    for (std::int64_t l = 0; l < jets.L; ++l) {
      const JetLayer& at = jets.layers[l];
      const std::int64_t n = at.layer.n_out;
      if (!back && l < 2 && !jets.between) turns[l] = arena.take<T>(tile * numbers);
      if (jets.between) {
        h[l] = between;
        g[l] = h[l] + all * at.made * n;
        between = g[l] + all * at.kept * n;
      } else {
        h[l] = back ? arena.take<T>(tile * at.made * n) : turns[l % 2];
        g[l] = back ? arena.take<T>(tile * at.kept * n) : nullptr;
      }
      dweight[l] = back ? arena.take<T>(Private<T>::gradient_size(at.layer)) : nullptr;
      dbias[l] = back && at.layer.bias.data ? arena.take<T>(n) : nullptr;
    }
    bytes = arena.used();
  }

  // Streams that are loaded: of unit vectors the first layer's products are columns of its weight
  static std::int64_t inputs_of(const Jets& jets) { return 1 + (jets.units() ? 0 : jets.directions); }
};

template <class T>
class JetTile {
  using V = Vec<T>;

 public:
  JetTile(const Jets& jets, const Shared<T>& weights, const JetRoom<T>& room)
      : jets_(jets), weights_(weights), room_(room) {
    if (jets.step) terms_.emplace(*jets.step, room.terms);
    if (jets.loss) room.loss.begin(*jets.loss);
  }

  void run(std::int64_t first, std::int64_t count) {
    first_ = first;
    M_ = count;
    const auto all = [&] {
      direction_ = 0;
      do {
        pass();
        direction_ += jets_.directions;
      } while (direction_ < jets_.P);
    };
    terms_ ? terms_->sweeps(first, count, all) : all();
  }

 private:
  // All of the directions from direction_ on that go side by side
  void pass() {
    if (!measured_) load();
    // what the last pass left, or what a first sweep does not ask for
    const bool there = terms_ ? measured_ || (direction_ && !terms_->predicting()) : jets_.between && jets_.gradients();
    for (std::int64_t l = 0; !there && l < jets_.L; ++l) forward(l);
    if (jets_.loss) compare();
    if (!jets_.gradients() && !terms_) return jets_.loss ? void() : store();
    seed();
    measured_ = terms_ && terms_->measuring() && jets_.directions >= jets_.P;
    if (!jets_.gradients() || (terms_ && terms_->measuring())) return;
    for (std::int64_t l = jets_.L - 1; l >= 0; --l) {
      sum_gradients(l);
      below(l);
      std::swap(bar_, next_bar_);
    }
  }

  const Jets& jets_;
  const Shared<T>& weights_;
  const JetRoom<T>& room_;
  std::int64_t first_ = 0, M_ = 0, direction_ = 0;
  T *bar_ = nullptr, *next_bar_ = nullptr;
  bool begun_ = false;  // whether gradients of weights hold a sum already
  std::optional<Terms<T>> terms_;
  bool measured_ = false;  // whether streams are there of all directions, whose residuals were summed

  std::int64_t panels() const { return (M_ + kPanel<T> - 1) / kPanel<T>; }
  std::int64_t inputs() const { return JetRoom<T>::inputs_of(jets_); }
  const JetLayer& layer(std::int64_t l) const { return jets_.layers[l]; }

  // Of a step, whether a layer is given second derivatives
  bool curved(std::int64_t l) const { return layer(l).given > 1 + jets_.directions; }

  T* h(std::int64_t l) const { return of_tile(room_.h[l], layer(l).made * layer(l).layer.n_out); }
  T* g(std::int64_t l) const { return of_tile(room_.g[l], layer(l).kept * layer(l).layer.n_out); }
  T* of_tile(T* array, std::int64_t numbers) const { return jets_.between ? array + first_ * numbers : array; }

  // The samples of a panel
  std::int64_t samples(std::int64_t panel) const { return std::min<std::int64_t>(kPanel<T>, M_ - panel * kPanel<T>); }

  // x and directions, as rows and as panels
  void load() {
    const auto at_panel = [&](T* array, std::int64_t panel, std::int64_t s, std::int64_t ld) {
      return array + (panel * inputs() + s) * kPanel<T> * ld;
    };
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      const std::int64_t first = first_ + panel * kPanel<T>;
      for (std::int64_t s = direction_ ? 1 : 0; s < inputs(); ++s) {
        T *rows = at_panel(room_.x_rows, panel, s, room_.ld_x), *to = at_panel(room_.x, panel, s, jets_.D);
        const std::int64_t p = direction_ + s - 1;
        if (s == 0) {
          load_rows(jets_.x, first, samples(panel), jets_.D, room_.ld_x, rows, to);
        } else if (p < jets_.P) {
          T* frame = room_.frames ? room_.frames + panel * jets_.P * jets_.W * kPanel<T> : nullptr;
          load_vector(jets_.along, first, samples(panel), p, jets_.W, room_.ld_x, rows, to, frame);
        } else {
          zero(rows, kPanel<T> * room_.ld_x);
          zero(to, kPanel<T> * jets_.W);
        }
      }
    }
  }

  // Rows [row, row + R) of a product for so many panels, and where their streams go, `apart` from each other
  struct Rows {
    std::int64_t panel, panels, row, R;
    T* to;
    std::int64_t apart;
  };

  // done(panel, row, rows, block) of blocks of rows, which multiply(Rows) made part by part, `streams` of each panel:
  // of few streams two panels go at once, so that a product's columns are even
  template <class Multiply, class Done>
  void each_block(std::int64_t n, std::int64_t streams, Multiply multiply, Done done) {
    const RowBlocks blocks(n);
    const AtOnce at_once(streams);
    for (std::int64_t panel = 0; panel < panels(); panel += at_once.panels) {
      const std::int64_t count = std::min(at_once.panels, panels() - panel);
      for (std::int64_t b = 0; b < blocks.blocks; b += at_once.blocks) {
        const std::int64_t end = std::min(b + at_once.blocks, blocks.blocks);
        const std::int64_t first = blocks.begin(b), rows = blocks.begin(end) - first;
        for (std::int64_t c = b; c < end; ++c) {
          const std::int64_t row = blocks.begin(c), R = blocks.begin(c + 1) - row;
          multiply(Rows{panel, count, row, R, room_.block + (row - first) * kPanel<T>, rows});
        }
        for (std::int64_t i = 0; i < count; ++i) {
          done(panel + i, first, rows, room_.block + i * streams * rows * kPanel<T>);
        }
      }
    }
  }

  // Rows of A times `count` columns of K numbers, which are `apart` from each other, as what comes of them is
  void multiply(const Matrix<T>& a, const Rows& of, std::int64_t K, const T* b, std::int64_t apart, std::int64_t count,
                T* to, std::int64_t to_apart) const {
    using Ld = Constant<kPanel<T>>;
    const std::int64_t next_b = apart * kPanel<T>, next_c = to_apart * kPanel<T>;
    for (; count > 0; count -= 2, b += 2 * next_b, to += 2 * next_c) {
      const auto run = product_block_of<T, Ld>(of.R, count > 1, a.next_row == 1);
      run(a.block(of.row), a.next(of.R), b, Ld(), next_b, K, nullptr, to, next_c);
    }
  }

  // Blocks of rows of A times all streams of each panel, b [streams][K]; `done` finds them as [streams][rows]
  template <class Done>
  void product_of_streams(const Matrix<T>& a, std::int64_t K, const T* b, std::int64_t streams, Done done) {
    const auto all = [&](const Rows& of) {
      multiply(a, of, K, b + of.panel * streams * K * kPanel<T>, K, of.panels * streams, of.to, of.apart);
    };
    each_block(a.rows, streams, all, done);
  }

  // The same of the inputs
  template <class Done>
  void product_of_inputs(Done done) {
    const Matrix<T>& a = weights_.forward[0];
    const std::int64_t D = jets_.D, given = layer(0).given, next = inputs() * D * kPanel<T>;
    if (!jets_.units() && jets_.W == D) return product_of_streams(a, D, room_.x, given, done);
    const auto apart = [&](const Rows& of) {
      const T* x = room_.x + of.panel * next;
      multiply(a, of, D, x, inputs() * D, of.panels, of.to, given * of.apart);
      for (std::int64_t i = 0; i < of.panels; ++i, x += next) {
        T* to = of.to + (i * given + 1) * of.apart * kPanel<T>;
        if (!jets_.units()) {
          multiply(a, of, jets_.W, x + D * kPanel<T>, D, jets_.directions, to, of.apart);
          continue;
        }
        for (std::int64_t s = 0; s < jets_.directions; ++s, to += of.apart * kPanel<T>) column(a, of, s, to);
      }
    };
    each_block(a.rows, given, apart, done);
  }

  // Rows of A times unit vector s of those side by side
  void column(const Matrix<T>& a, const Rows& of, std::int64_t s, T* to) const {
    const bool there = direction_ + s < jets_.P;
    const T* from = a.block(of.row) + (there ? direction_ + s : 0) * (a.packed ? of.R : a.next_k);
    const double magnitude = there ? jets_.along.magnitude : 0.0;
    for (std::int64_t i = 0; i < of.R; ++i, to += kPanel<T>) V(double(from[i * a.next_row]) * magnitude).store(to);
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
    const Program& program = jets_.adjoints() ? here.forward : here.values;
    const int kept = jets_.adjoints() ? here.kept : 0;
    const bool high = program.sigma[4] >= 0 || program.sigma[5] >= 0;
    const auto activation = with_activation(here.layer.activation.row, [&](auto a) {
      return high ? &differentiate<decltype(a), T, true> : &differentiate<decltype(a), T, false>;
    });
    const auto done = [&](std::int64_t panel, std::int64_t row, std::int64_t R, T* z) {
      T* h = place(this->h(l), panel, here.made, n, row);
      for (std::int64_t i = 0; weights_.bias[l] && here.value && i < R; ++i) {
        (V::load(z + i * kPanel<T>) + V(double(weights_.bias[l][row + i]))).store(z + i * kPanel<T>);
      }
      if (!program.slots) return copy(z, R, here.made, R, h, n);
      slots_ = 0;
      slots(z, here.given, R);
      slots(h, here.made, n);
      if (kept) slots(place(g(l), panel, kept, n, row), kept, n);
      slots(room_.scratch, program.slots - slots_, R);
      T* sigma[kDerivatives];
      for (int m = 0; m < kDerivatives; ++m) {
        sigma[m] = program.sigma[m] < 0 ? nullptr : room_.slots[program.sigma[m]];
      }
      activation(z, sigma, R * kPanel<T>, here.layer.activation.parameters);
      if (terms_) return along_forward(room_.slots, jets_.directions, curved(l), kept > 0, sigma, R);
      execute(program, R, room_.slots);
    };
    if (l == 0) return product_of_inputs(done);
    product_of_streams(weights_.forward[l], here.layer.n_in, h(l - 1), here.given, done);
  }

  // f(where output `column` of a panel of a stream of the last layer is, result, panel, coefficient)
  template <class F>
  void each_named(T* of, F f) const {
    const int made = layer(jets_.L - 1).made;
    for (std::int64_t i = 0; i < jets_.count_named; ++i) {
      const Named& named = jets_.named[i];
      if (direction_ && named.stream == 0) continue;
      for (std::int64_t panel = 0; panel < panels(); ++panel) {
        f(place(of, panel, made, jets_.O, 0) + (named.stream * jets_.O + named.column) * kPanel<T>, named.result, panel,
          T(named.coefficient));
      }
    }
  }

  void store() {
    for (std::int64_t r = 0; !direction_ && r < jets_.results; ++r) {
      const Place& to = jets_.out[r];
      for (std::int64_t m = 0; to.data && m < M_; ++m) static_cast<T*>(to.data)[(first_ + m) * to.step] = 0;
    }
    each_named(h(jets_.L - 1), [&](const T* h, std::int64_t result, std::int64_t panel, T c) {
      const Place& to = jets_.out[result];
      T* at = static_cast<T*>(to.data) + (first_ + panel * kPanel<T>)*to.step;
      for (std::int64_t m = 0; to.data && m < samples(panel); ++m) at[m * to.step] += c * h[m];
    });
  }

  // The loss of the results, and their cotangents
  void compare() {
    const LossTile<T> loss(*jets_.loss, room_.loss, first_, M_);
    loss.load();
    for (std::int64_t r = 0; r < jets_.results; ++r) zero(loss.slot(r), panels() * kPanel<T>);
    each_named(h(jets_.L - 1), [&](const T* h, std::int64_t result, std::int64_t panel, T c) {
      T* to = loss.slot(result) + panel * kPanel<T>;
      for (int m = 0; m < kPanel<T>; ++m) to[m] += c * h[m];
    });
    loss.run(room_.slots);
  }

  // What a step's streams are stored to and compared with; their adjoints into h_bar, if it is there
  void compare_with_targets(T* h_bar) {
    const std::int64_t O = jets_.O, side_by_side = jets_.directions, p = direction_, made = layer(jets_.L - 1).made;
    const std::int64_t there = std::min(side_by_side, jets_.P - p), next = inputs() * kPanel<T>;
    const auto from = [&](T* array, std::int64_t stream) -> Ends<T> {
      return {array ? array + stream * O * kPanel<T> : nullptr, O * kPanel<T>, made * O * kPanel<T>};
    };
    const auto store = [&](const Ends<T>& ends, void* to, std::int64_t first, std::int64_t count) {
      for (std::int64_t s = 0; s < count; ++s) {
        store_columns(ends.at(s, 0), ends.panel, M_, O, to, (first + s) * jets_.N + first_, O, 0);
      }
    };
    T* h = this->h(jets_.L - 1);
    const bool curved = made > 1 + side_by_side;
    const Ends<T> seconds = curved ? from(h, 1 + side_by_side) : Ends<T>{room_.none};
    zero(room_.none, O * kPanel<T>);
    if (p == 0) store(from(h, 0), jets_.step->y, 0, 1);
    store(from(h, 1), jets_.step->derivatives, p, there);
    store(seconds, jets_.step->second, p, there);
    if (jets_.step->residuals == Residuals::kNone) return;
    if (p == 0) terms_->compare(kValue, 0, 1, 0, O, {}, from(h, 0), from(h_bar, 0));
    const Ends<T> panels{room_.x + jets_.D * kPanel<T>, jets_.D * kPanel<T>, next * jets_.D};
    const Ends<T> rows{room_.x_rows + kPanel<T> * room_.ld_x, kPanel<T> * room_.ld_x, next * room_.ld_x};
    const Vectors<T> v{panels, rows, room_.ld_x};
    terms_->compare(kFirst, p, there, 0, O, v, from(h, 1), from(h_bar, 1));
    terms_->compare(kSecond, p, there, 0, O, v, seconds, curved ? from(h_bar, 1 + side_by_side) : Ends<T>{});
  }

  // The adjoint of the last layer's z, from the cotangents of the results
  void seed() {
    const JetLayer& top = layer(jets_.L - 1);
    bar_ = room_.bar;
    next_bar_ = room_.next_bar;
    T* h_bar = !jets_.gradients() ? nullptr : top.adjoint.slots ? next_bar_ : bar_;
    zero(h_bar, h_bar ? panels() * top.made * jets_.O * kPanel<T> : 0);
    if (terms_) compare_with_targets(h_bar);
    each_named(h_bar, [&](T* bar, std::int64_t result, std::int64_t panel, T c) {
      if (jets_.loss) {
        const int slot = jets_.loss->bars[result];
        if (slot >= 0) add(room_.loss.slot(slot) + panel * kPanel<T>, 1, panel, c, bar);
      } else if (const Place& from = jets_.cotangents[result]; from.data) {
        add(static_cast<const T*>(from.data) + (first_ + panel * kPanel<T>)*from.step, from.step, panel, c, bar);
      }
    });
    if (!top.adjoint.slots || !h_bar) return;
    for (std::int64_t panel = 0; panel < panels(); ++panel) {
      through(jets_.L - 1, place(h_bar, panel, top.made, jets_.O, 0), jets_.O, bar_, panel, 0, jets_.O);
    }
  }

  // Numbers of a panel's samples times c
  void add(const T* from, std::int64_t step, std::int64_t panel, T c, T* to) const {
    for (std::int64_t m = 0; m < samples(panel); ++m) to[m] += c * from[m * step];
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
    slots(place(g(l), panel, here.kept, n, row), here.kept, n);
    slots(to, here.given, n);
    if (terms_) return along_adjoint(room_.slots, jets_.directions, curved(l), R);
    execute(here.adjoint, R, room_.slots);
  }

  void sum_gradients(std::int64_t l) {
    const JetLayer& here = layer(l);
    const std::int64_t n_in = here.layer.n_in, streams = here.given;
    if (l > 0) {
      panels_to_rows(h(l - 1), n_in, streams * panels(), room_.rows, room_.ld_rows);
      add_outer(l, 0, streams, room_.rows, room_.ld_rows, streams, n_in);
    } else if (jets_.units()) {
      add_outer(0, 0, 1, room_.x_rows, room_.ld_x, 1, n_in);
      add_columns();
    } else {
      const bool at_once = jets_.W == jets_.D;
      add_outer(0, 0, at_once ? streams : 1, room_.x_rows, room_.ld_x, inputs(), n_in);
      if (!at_once) add_outer(0, 1, streams, room_.x_rows + kPanel<T> * room_.ld_x, room_.ld_x, inputs(), jets_.W);
    }
    for (std::int64_t i = 0; room_.dbias[l] && here.value && i < here.layer.n_out; ++i) {
      room_.dbias[l][i] += total(l, 0, i);
    }
  }

  // The gradient of the first n columns of a layer's weight += z̄ hᵀ of streams [begin, end), of each panel so many h
  // as rows
  void add_outer(std::int64_t l, std::int64_t begin, std::int64_t end, const T* rows, std::int64_t ld,
                 std::int64_t of_panel, std::int64_t n) {
    const std::int64_t n_out = layer(l).layer.n_out, n_in = layer(l).layer.n_in, streams = layer(l).given;
    const std::int64_t next = (n_out - 1) * kPanel<T>, full = M_ / kPanel<T>;
    const bool all = begin == 0 && end == streams && of_panel == streams;
    Samples<T>* to = room_.samples;
    const auto append = [&](std::int64_t panel, std::int64_t s, std::int64_t count) {
      *to++ = {place(bar_, panel, streams, n_out, 0) + s * n_out * kPanel<T>,
               rows + (panel * of_panel + s - begin) * kPanel<T> * ld,
               ld,
               count,
               kPanel<T>,
               next};
    };
    if (all && full) append(0, 0, full * streams * kPanel<T>);
    for (std::int64_t panel = all ? full : 0; panel < panels(); ++panel) {
      if (panel < full) {
        append(panel, begin, (end - begin) * kPanel<T>);
        continue;
      }
      // what lanes beyond the samples have is no number
      for (std::int64_t s = begin; s < end; ++s) append(panel, s, samples(panel));
    }
    outer_to_strips(room_.samples, to - room_.samples, n_out, n, !begun_, room_.dweight[l], n_in);
    if (l == 0) begun_ = true;
  }

  // The same of unit vectors
  void add_columns() const {
    const std::int64_t n = layer(0).layer.n_out, n_in = jets_.D;
    for (std::int64_t s = 0; s < jets_.directions && direction_ + s < jets_.P; ++s) {
      constexpr std::int64_t kTwo = 2 * V::kLanes;
      const std::int64_t column = direction_ + s, j = column / kTwo * kTwo, width = strip<T>(n_in, j);
      T* to = room_.dweight[0] + j * n + column - j;
      for (std::int64_t i = 0; i < n; ++i) to[i * width] += T(jets_.along.magnitude) * total(0, 1 + s, i);
    }
  }

  // Row i of a stream of z̄, summed over the samples
  T total(std::int64_t l, std::int64_t s, std::int64_t i) const {
    const std::int64_t n = layer(l).layer.n_out, streams = layer(l).given;
    return sum_samples(bar_ + (s * n + i) * kPanel<T>, streams * n * kPanel<T>, M_);
  }

  // The adjoint of what layer l was given: of z below it, or of the inputs
  void below(std::int64_t l) {
    const std::int64_t n = layer(l).layer.n_out, given = layer(l).given;
    const Matrix<T>& a = weights_.backward[l];
    if (l > 0) {
      return product_of_streams(a, n, bar_, given, [&](std::int64_t panel, std::int64_t row, std::int64_t R, T* block) {
        through(l - 1, block, R, next_bar_, panel, row, R);
      });
    }
    if (jets_.dx) adjoint_of_inputs(0, 1, jets_.D, static_cast<T*>(jets_.dx));
    if (jets_.dv) adjoint_of_inputs(1, given, jets_.W, static_cast<T*>(jets_.dv) + direction_ * jets_.N * jets_.W);
  }

  // to[stream][sample][rows], of streams [begin, end)
  void adjoint_of_inputs(std::int64_t begin, std::int64_t end, std::int64_t rows, T* to) {
    const Matrix<T>& a = weights_.backward[0];
    const std::int64_t n = layer(0).layer.n_out, given = layer(0).given, streams = end - begin;
    const std::int64_t there = begin ? std::min(streams, jets_.P - direction_) : 1;
    const auto some = [&](const Rows& of) {
      for (std::int64_t i = 0; i < of.panels && of.row < rows; ++i) {
        const T* b = place(bar_, of.panel + i, given, n, begin * n);
        multiply(a, of, n, b, n, streams, of.to + i * streams * of.apart * kPanel<T>, of.apart);
      }
    };
    each_block(a.rows, streams, some, [&](std::int64_t panel, std::int64_t row, std::int64_t R, const T* block) {
      for (std::int64_t s = 0; s < there; ++s) {
        const std::int64_t first = s * jets_.N + first_ + panel * kPanel<T>;
        for (std::int64_t m = 0; m < samples(panel); ++m) {
          for (std::int64_t i = 0; i < R && row + i < rows; ++i) {
            T& at = to[(first + m) * rows + row + i];
            const T adjoint = block[(s * R + i) * kPanel<T> + m];
            at = begin == 0 && direction_ ? at + adjoint : adjoint;
          }
        }
      }
    });
  }

  std::int64_t slots_ = 0;  // of those of a block that are known
};
