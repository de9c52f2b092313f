// Where a step keeps what it computes: one struct that only hands out addresses. Nothing here grows with N, and with
// P only the frames of orthonormal directions do (P <= D), and what is carried side by side up to step.group.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// A bump allocator; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(std::int64_t count) {
    char* here = base_ ? base_ + used_ : nullptr;
    used_ += (std::size_t(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(here);
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

constexpr std::int64_t kMaxLayers = 64;

// The streams by their order, and the terms of a loss made of them
enum Term : int { kValue, kFirst, kSecond };

inline std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// The width of rows of n: an odd number of vectors, since rows a power of two apart would share the few sets of the
// first-level cache.
template <class T>
std::int64_t apart_in_cache(std::int64_t n) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  return round_up(n, kLanes) + (round_up(n, kLanes) / kLanes % 2 ? 0 : kLanes);
}

inline bool curved(const Layer& layer) {
  return with_activation(layer.activation.row, [](auto activation) { return decltype(activation)::kCurved; });
}

// A weight or its transpose as the left operand of a product, packed into the arena or where it lies.
template <class T>
Matrix<T> left_operand(Arena& arena, bool wanted, bool in_place, const Strided& w, bool transposed, std::int64_t rows,
                       std::int64_t K) {
  const std::int64_t next_row = w.stride[transposed], next_k = w.stride[!transposed];
  if (!wanted) return {};
  if (in_place && (next_row == 1 || next_k == 1)) {
    return {static_cast<const T*>(w.data), rows, K, next_row, next_k, false};
  }
  return {arena.take<T>(rows * K), rows, K, 1, 0, true};
}

// What a layer of any work is multiplied with: W, so many rows of Wᵀ, and whether a bias is added
struct Wanted {
  bool forward, backward, bias;
  std::int64_t rows;
};

inline const Layer& layer_of(const Step& step, std::int64_t l) { return step.layers[l]; }
inline const Layer& layer_of(const Jets& jets, std::int64_t l) { return jets.layers[l].layer; }
inline const Layer& layer_of(const Chain& chain, std::int64_t l) { return chain.layers[l]; }
inline const Layer& layer_of(const Recurrent& work, std::int64_t l) { return work.layers[l]; }

inline Wanted wanted_of(const Step& step, std::int64_t l) {
  const bool back = (step.side == Side::kGradients && step.P > 0) || (step.gradients && (l > 0 || step.dgiven));
  return {true, back, true, l ? step.layers[l].n_in : step.W};
}
inline Wanted wanted_of(const Jets& jets, std::int64_t l) {
  return {true, jets.gradients() && (l > 0 || jets.dx || jets.dv), true, jets.layers[l].layer.n_in};
}
inline Wanted wanted_of(const Chain& chain, std::int64_t l) {
  const bool back = chain.backward();
  return {!back, back && (l > 0 || chain.out), chain.pass == Pass::kValues, chain.layers[l].n_in};
}
inline Wanted wanted_of(const Recurrent& work, std::int64_t l) {
  const bool back = work.backward();
  return {!back, back && (l > 0 || work.out || work.out_moved), !back && work.of_values(), work.layers[l].n_in};
}

// Work in passes: what they keep is in panels, with which tiles begin
template <class Work>
constexpr bool kInPasses = std::is_same_v<Work, Chain> || std::is_same_v<Work, Recurrent>;

// What all threads read: the weights for the two directions they are multiplied in, packed or where they lie.
template <class T>
struct Shared {
  Matrix<T> forward[kMaxLayers];   // W
  Matrix<T> backward[kMaxLayers];  // Wᵀ; of a step's first layer the rows of the differentiated inputs
  Matrix<T> input;                 // a step's first layer's Wᵀ, all rows, for dx
  T* bias[kMaxLayers];             // null without bias
  std::size_t bytes;

  template <class Work>
  Shared(const Work& work, void* base) {
    Arena arena(base);
    const auto matrix = [&](bool wanted, const Strided& w, bool transposed, std::int64_t rows, std::int64_t K) {
      return left_operand<T>(arena, wanted, work.in_place, w, transposed, rows, K);
    };
    for (std::int64_t l = 0; l < work.L; ++l) {
      const Layer& layer = layer_of(work, l);
      const Wanted wanted = wanted_of(work, l);
      forward[l] = matrix(wanted.forward, layer.weight, false, layer.n_out, layer.n_in);
      backward[l] = matrix(wanted.backward, layer.weight, true, wanted.rows, layer.n_out);
      bias[l] = wanted.bias && layer.bias.data ? arena.take<T>(layer.n_out) : nullptr;
    }
    if constexpr (std::is_same_v<Work, Step>) {
      input = matrix(work.gradients && work.dx, work.layers[0].weight, true, work.D, work.layers[0].n_out);
    }
    bytes = arena.used();
  }
};

// What the terms of a loss need, of the streams at hand
template <class T>
struct TermsRoom {
  T* target;                   // [streams][O or W] as panels
  T *across, *along;           // [W, O][kPanel] directions side by side, and a sample's Jacobian along them
  T* weight;                   // [O or W] of one derivative, if each of its numbers has its own
  T* output_weight;            // [O]
  T* terms[kMaxTerms];         // of each sample, sums of residuals
  double* sums[kMaxTerms];     // [5] sums of a coupled loss
  double* partial[kMaxTerms];  // [3] its partial derivatives
  double* totals;              // [kMaxTerms]

  void take(const Step& step, std::int64_t tile, std::int64_t streams, Arena& arena) {
    const std::int64_t most = std::max(step.O, step.W), wide = step.P > 0 ? kPanel<T> : 0;
    target = arena.take<T>(tile * std::max<std::int64_t>(1, streams) * most);
    across = arena.take<T>(round_up(step.W, kPanel<T>) * wide);
    along = arena.take<T>(step.O * wide);
    weight = arena.take<T>(step.derivative_weight.data ? tile * most : 0);
    output_weight = arena.take<T>(step.O);
    for (int term = 0; term < kMaxTerms; ++term) {
      terms[term] = arena.take<T>(tile);
      sums[term] = arena.take<double>(tile * 5);
      partial[term] = arena.take<double>(tile * 3);
    }
    totals = arena.take<double>(kMaxTerms);
  }
};

// What one thread works in: the arrays of a tile, and its part of the gradients.
// Arrays marked [n] are panels [tile / kPanel][n][kPanel]; those marked rows are [tile][ld]. What is said to be of a
// direction (derivative, output, cotangent) "at hand" is there for each of those that are carried side by side.
template <class T>
struct Private {
  T *x_rows, *x;              // [D]
  T *v_rows, *v;              // [W] the direction at hand
  T *u_rows, *u;              // [O] the cotangent at hand
  T* frames;                  // all orthonormal directions so far
  T* h[kMaxLayers];           // [n] activation
  T* d1[kMaxLayers];          // [n] σ'(z)
  T* d2[kMaxLayers];          // [n] σ''(z)
  T* tangent[kMaxLayers];     // [n] ḣ of the direction at hand
  T* curvature[kMaxLayers];   // [n] σ''(z) ż of the direction at hand
  T* q[kMaxLayers];           // [n] what the derivatives owe the value stream
  T* a[kMaxLayers];           // [n] adjoint of h of the output at hand
  T* delta[kMaxLayers];       // [n] σ'(z) a
  T *gradient, *g_bar;        // [W] of the output at hand, and its adjoint
  T *z_bar, *next_bar;        // [n] adjoints of this layer and of the one below
  T* z_of[2][kMaxLayers];     // [n] those of a stream: these two by turns, delta, or kept to be gathered
  T* rows_of[2][kMaxLayers];  // [n_in] what the layer was given, likewise
  T* slope;                   // [1] adjoint of one derivative of an output
  T* rows;                    // [n] as rows
  // In lockstep [n] columns are [n][ld_columns], those of the values and then of each direction, without gaps; σ' and
  // σ'' are [n][M], the curvature columns; of all these the next rows may be written to before their turn.
  T *columns_x, *columns[kMaxLayers];  // what is given, and h and ḣ
  T* columns_z[kMaxLayers];            // adjoints of z, by turns or kept to be gathered
  T *block, *values;                   // of a block of rows: a product, and its values alone
  // Of a head [O]: what it is a function of, with the exponentials of one that is normalised; its values; what its
  // derivatives owe the outputs; and its tangents at hand, or the cotangents of it
  T *head_a, *head_s, *head_value, *head_q, *head_tangent;
  TermsRoom<T> of_terms;
  Samples<T>* samples;     // what is summed at once: all streams at hand, or what all parts kept
  T* dweight[kMaxLayers];  // in strips, null if gathered
  T* dbias[kMaxLayers];
  std::int64_t ld_rows, ld_x, ld_v, ld_u, ld_columns;
  std::size_t bytes;

  Private(const Step& step, void* base) {
    constexpr std::int64_t kLanes = Vec<T>::kLanes;
    const std::int64_t tile = round_up(step.tile, kPanel<T>);
    Arena arena(base);
    const std::int64_t group = step.P > 0 ? step.group : 1;
    const auto panels = [&](bool wanted, std::int64_t n) { return wanted ? arena.take<T>(tile * n) : nullptr; };
    const auto streams = [&](bool wanted, std::int64_t n) { return panels(wanted, group * n); };
    std::int64_t widest = step.D;
    for (std::int64_t l = 0; l < step.L; ++l) {
      if (step.layers[l].n_out > widest) widest = step.layers[l].n_out;
    }
    ld_rows = apart_in_cache<T>(widest);
    ld_x = round_up(step.D, kLanes);
    ld_v = round_up(step.W, kLanes);
    ld_u = round_up(step.O, kLanes);
    const bool projected = step.P > 0, back = step.gradients;
    const bool gradients = projected && step.side == Side::kGradients;
    const bool cotangents = projected && step.projection == Projection::kCotangents;
    const bool lockstep = step.in_lockstep();
    const auto apart = [&](bool wanted, std::int64_t n) {  // its rows are so long that the last may be written beyond
      return wanted ? arena.take<T>(n + kLanes) : nullptr;
    };
    ld_columns = round_up((1 + step.P) * step.tile, kLanes);
    const bool framed = projected && step.directions.distribution == Distribution::kOrthonormal;
    x_rows = panels(true, ld_x);
    x = panels(true, step.D);
    v_rows = streams(projected, ld_v);
    v = streams(projected, step.W);
    u_rows = streams(cotangents, ld_u);
    u = streams(gradients, step.O);
    gradient = streams(gradients, step.W);
    g_bar = streams(gradients, step.W);
    frames = panels(framed, step.drawn() * step.P);
    for (std::int64_t l = 0; l < step.L; ++l) {
      const Layer& layer = step.layers[l];
      const std::int64_t n = layer.n_out;
      const bool bent = layer.activation.row != 0, owes = projected && curved(layer) && back;
      const bool inner = lockstep && l < step.L - 1;
      h[l] = panels(!inner, n);
      d1[l] = lockstep ? apart(bent, n * step.tile) : panels(bent && (projected || back), n);
      d2[l] = lockstep ? apart(owes, n * step.tile) : panels(owes, n);
      tangent[l] = streams(projected && !inner, n);
      curvature[l] = lockstep ? apart(owes, n * ld_columns) : streams(owes, n);
      columns[l] = apart(lockstep, n * ld_columns);
      q[l] = panels(owes && !lockstep, n);
      a[l] = l == step.L - 1 ? u : streams(gradients, n);
      delta[l] = streams(gradients, n);
      dweight[l] = back && !step.gathers() ? arena.take<T>(gradient_size(layer)) : nullptr;
      dbias[l] = back && layer.bias.data ? arena.take<T>(n) : nullptr;
    }
    columns_x = apart(lockstep, step.D * ld_columns);
    block = apart(lockstep, kRows * ld_columns);
    values = apart(lockstep, kRows * step.tile);
    z_bar = lockstep ? apart(back, widest * ld_columns) : streams(back, widest);
    next_bar = lockstep ? apart(back, widest * ld_columns) : streams(back, widest);
    rows = lockstep ? arena.take<T>(back ? ld_columns * ld_rows : 0) : streams(back, ld_rows);
    for (std::int64_t l = 0; lockstep && l < step.L; ++l) {
      T* turn = (step.L - 1 - l) % 2 ? next_bar : z_bar;
      columns_z[l] = step.gathers() ? apart(true, step.layers[l].n_out * ld_columns) : turn;
    }
    for (const Term term : {kValue, kFirst}) {
      const bool kept = step.gathers() && (term == kValue || projected);
      const auto keep = [&](std::int64_t n) { return term == kValue ? panels(kept, n) : streams(kept, n); };
      for (std::int64_t l = 0; l < step.L; ++l) {
        T* turn = (step.L - 1 - l) % 2 ? next_bar : z_bar;
        rows_of[term][l] = l == 0 ? (term == kValue ? x_rows : v_rows) : rows;
        if (lockstep) {  // slopes in panels, and rows of all columns
          z_of[term][l] = l == step.L - 1 ? streams(back, step.O) : nullptr;
          if (l > 0 && kept && term == kValue) rows_of[term][l] = arena.take<T>(ld_columns * ld_rows);
          continue;
        }
        z_of[term][l] = gradients && term == kFirst ? delta[l] : kept ? keep(step.layers[l].n_out) : turn;
        if (l > 0 && kept) rows_of[term][l] = keep(ld_rows);
      }
    }
    slope = panels(gradients, 1);
    of_terms.take(step, tile, group, arena);
    for (T** of_head : {&head_a, &head_s, &head_value, &head_q}) *of_head = panels(step.headed(), step.O);
    head_tangent = streams(step.headed() && projected, step.O);
    const std::int64_t streams_of_all = step.gathers() ? step.tiles() * (1 + group) : group;
    samples = arena.take<Samples<T>>(back ? streams_of_all : 0);
    bytes = arena.used();
  }

  // Appends what the streams of a term give the gradient of a layer's weights, and gives where the next goes
  Samples<T>* append(const Step& step, Term term, std::int64_t l, std::int64_t streams, std::int64_t M,
                     Samples<T>* to) const {
    const std::int64_t ld = l ? ld_rows : term == kValue ? ld_x : ld_v;
    const T *z = z_of[term][l], *h = rows_of[term][l];
    if (step.in_lockstep()) return append_columns(step, term, l, M, to);
    const std::int64_t n = step.layers[l].n_out, next = (n - 1) * kPanel<T>, whole = round_up(M, kPanel<T>);
    const std::int64_t parts = whole == M ? 1 : streams;  // of panels that are not full each stream's are a part
    for (std::int64_t s = 0; s < parts; ++s) {
      *to++ = {z + s * whole * n, h + s * whole * ld, ld, streams / parts * M, kPanel<T>, next};
    }
    return to;
  }

  // All columns at once, as those of the values; of the first layer each stream has rows of its own
  Samples<T>* append_columns(const Step& step, Term term, std::int64_t l, std::int64_t M, Samples<T>* to) const {
    const T *z = columns_z[l], *h = rows_of[term][l];
    if (l > 0 && term == kValue) *to++ = {z, h, ld_rows, (1 + step.P) * M, ld_columns, 0};
    if (l > 0) return to;
    if (term == kValue) *to++ = {z, h, ld_x, M, ld_columns, 0};
    for (std::int64_t p = 0; term == kFirst && p < step.P; ++p) {
      *to++ = {z + (1 + p) * M, h + p * round_up(M, kPanel<T>) * ld_v, ld_v, M, ld_columns, 0};
    }
    return to;
  }

  static std::int64_t gradient_size(const Layer& layer) { return layer.n_out * round_up(layer.n_in, Vec<T>::kLanes); }
};
