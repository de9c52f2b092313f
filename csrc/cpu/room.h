// Where a step keeps what it computes: one struct that only hands out addresses. Nothing here grows with N, and with
// P only the frames of orthonormal directions do (P <= D).
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

inline std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

inline bool curved(const Layer& layer) {
  return with_activation(layer.activation.row, [](auto activation) { return decltype(activation)::kCurved; });
}

// What all threads read: the weights, packed for the two directions they are multiplied in.
template <class T>
struct Shared {
  T* forward[kMaxLayers];   // W,  row blocks of n_out
  T* backward[kMaxLayers];  // Wᵀ, row blocks of n_in
  T* bias[kMaxLayers];      // null without bias
  std::size_t bytes;

  Shared(const Step& step, void* base) {
    Arena arena(base);
    for (std::int64_t l = 0; l < step.L; ++l) {
      const Layer& layer = step.layers[l];
      const std::int64_t size = layer.n_in * layer.n_out;
      const bool gradients = step.side == Side::kGradients && step.P > 0;
      const bool transposed = gradients || (step.gradients && (l > 0 || step.dx));
      forward[l] = arena.take<T>(size);
      backward[l] = transposed ? arena.take<T>(size) : nullptr;
      bias[l] = layer.bias.data ? arena.take<T>(layer.n_out) : nullptr;
    }
    bytes = arena.used();
  }
};

// One thread's own: the arrays of a tile, and its part of the gradients.
// Arrays marked [n] are panels [tile / kPanel][n][kPanel]; those marked rows are [tile][ld].
template <class T>
struct Private {
  T *x_rows, *x, *v_rows, *v, *frames;
  T* h[kMaxLayers];          // [n] activation
  T* d1[kMaxLayers];         // [n] σ'(z)
  T* d2[kMaxLayers];         // [n] σ''(z)
  T* tangent[kMaxLayers];    // [n] ḣ of the direction at hand
  T* curvature[kMaxLayers];  // [n] σ''(z) ż of the direction at hand
  T* q[kMaxLayers];          // [n] Σ_p σ''(z) ż a: what the tangents owe the value stream
  T* a[kMaxLayers];          // [n] W^T delta of the layer above: the adjoint of h of the output at hand
  T* delta[kMaxLayers];      // [n] σ'(z) a
  T *gradient, *g_bar;       // [D] of the output at hand, and its adjoint
  T *z_bar, *next_bar;       // [n] adjoints of this layer and of the one below
  T *target, *rows, *terms;  // [O]; rows; [2][tile]
  T* dweight[kMaxLayers];    // [n_out][ld_g]
  T* dbias[kMaxLayers];
  double* totals;  // [2]
  std::int64_t ld_rows, ld_x;
  std::size_t bytes;

  Private(const Step& step, void* base) {
    constexpr std::int64_t kLanes = Vec<T>::kLanes;
    const std::int64_t tile = round_up(step.tile, kPanel<T>);
    Arena arena(base);
    std::int64_t widest = step.D;
    for (std::int64_t l = 0; l < step.L; ++l) {
      if (step.layers[l].n_out > widest) widest = step.layers[l].n_out;
    }
    // an odd number of vectors: rows a power of two apart would share the few sets of the first-level cache
    ld_rows = round_up(widest, kLanes) + (round_up(widest, kLanes) / kLanes % 2 ? 0 : kLanes);
    ld_x = round_up(step.D, kLanes);
    const bool tangents = step.P > 0, back = step.gradients;
    totals = arena.take<double>(2);
    x_rows = arena.take<T>(tile * ld_x);
    x = arena.take<T>(tile * step.D);
    v_rows = tangents ? arena.take<T>(tile * ld_x) : nullptr;
    v = tangents ? arena.take<T>(tile * step.D) : nullptr;
    const bool gradients = tangents && step.side == Side::kGradients;
    gradient = gradients ? arena.take<T>(tile * step.D) : nullptr;
    g_bar = gradients ? arena.take<T>(tile * step.D) : nullptr;
    const bool framed = step.directions.distribution == Distribution::kOrthonormal;
    frames = framed ? arena.take<T>(tile * step.D * step.P) : nullptr;
    for (std::int64_t l = 0; l < step.L; ++l) {
      const Layer& layer = step.layers[l];
      const std::int64_t size = tile * layer.n_out;
      const bool owes = tangents && back && curved(layer), bent = layer.activation.row != 0;
      h[l] = arena.take<T>(size);
      d1[l] = bent && (tangents || back) ? arena.take<T>(size) : nullptr;
      d2[l] = owes ? arena.take<T>(size) : nullptr;
      tangent[l] = tangents ? arena.take<T>(size) : nullptr;
      curvature[l] = owes ? arena.take<T>(size) : nullptr;
      q[l] = owes ? arena.take<T>(size) : nullptr;
      a[l] = gradients ? arena.take<T>(size) : nullptr;
      delta[l] = gradients ? arena.take<T>(size) : nullptr;
      dweight[l] = back ? arena.take<T>(layer.n_out * ld_gradient(layer)) : nullptr;
      dbias[l] = back && layer.bias.data ? arena.take<T>(layer.n_out) : nullptr;
    }
    z_bar = back ? arena.take<T>(tile * widest) : nullptr;
    next_bar = back ? arena.take<T>(tile * widest) : nullptr;
    rows = back ? arena.take<T>(tile * ld_rows) : nullptr;
    target = arena.take<T>(tile * step.O);
    terms = arena.take<T>(2 * tile);
    bytes = arena.used();
  }

  static std::int64_t ld_gradient(const Layer& layer) { return round_up(layer.n_in, Vec<T>::kLanes); }
};
