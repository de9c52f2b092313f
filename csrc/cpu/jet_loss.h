// A loss of named derivatives, made and differentiated where the streams of a tile are (docs/math.md, section 15).
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
struct LossRoom {
  T* slots = nullptr;               // [slots][width]
  T* weight = nullptr;              // [width] of samples, 0 beyond them
  T* target = nullptr;              // [width] of the deviation at hand
  double* totals = nullptr;         // [terms]
  double* dcoefficients = nullptr;  // [coefficients]
  std::int64_t width = 0;

  T* slot(std::int64_t i) const { return slots + i * width; }

  // Takes room for tiles of so many samples, and gives the number of slots
  std::int64_t take(const JetLoss& loss, std::int64_t tile, Arena& arena) {
    const std::int64_t count = std::max(loss.values.slots, loss.adjoint.slots);
    width = tile;
    slots = arena.take<T>(count * width);
    weight = arena.take<T>(width);
    target = arena.take<T>(width);
    totals = arena.take<double>(loss.count_terms);
    dcoefficients = arena.take<double>(loss.count_coefficients);
    return count;
  }

  void begin(const JetLoss& loss) const {
    for (std::int64_t t = 0; t < loss.count_terms; ++t) totals[t] = 0;
    for (std::int64_t k = 0; k < loss.count_coefficients; ++k) dcoefficients[k] = 0;
  }
};

// ρ of the deviations of `count` samples, whose sum it gives; slopes times the factor. Of weight 0 a deviation counts
// as 0 whatever it is.
template <class L, class T>
double deviate(const T* value, const T* target, const T* weight, std::int64_t count, double unit, double factor,
               const double* parameters, T* slope) {
  using V = Vec<T>;
  V total(0.0);
  for (std::int64_t m = 0; m < count; m += V::kLanes) {
    const V w = V::load(weight + m), t = target ? V::load(target + m) : V(0.0);
    const V r = where(w != V(0.0), (V::load(value + m) - t) * V(unit), V(0.0));
    const Residual<V> rho = L::call(r, parameters);
    total = total + w * rho.value;
    if (slope) (w * rho.slope * V(factor)).store(slope + m);
  }
  return double(sum(total));
}

// Of no number of which it is one, NaN, and of 0 minus infinity, as of the C library; subnormal numbers are scaled
template <class T>
Vec<T> log_of_any(Vec<T> x) {
  using V = Vec<T>;
  constexpr double kScale = double(1 << 24), kLogScale = 16.635532333438687;
  const auto small = x < V(double(std::numeric_limits<T>::min()));
  const V found = log(where(small, x * V(kScale), x)) - where(small, V(kLogScale), V(0.0));
  const V none = where(x < V(0.0), V(std::nan("")), V(-double(std::numeric_limits<T>::infinity())));
  return where(x > V(0.0), found, where(x != x, x, none));
}

// y = f(x) of `count` numbers, and f(1) of samples that do not count, since x may be whatever it is there
template <class T, class F>
void apply_each(const T* x, const T* weight, std::int64_t count, T* y, F f) {
  using V = Vec<T>;
  for (std::int64_t m = 0; m < count; m += V::kLanes) {
    f(where(V::load(weight + m) != V(0.0), V::load(x + m), V(1.0))).store(y + m);
  }
}

template <class T>
void apply(Function function, const T* x, const T* weight, std::int64_t count, T* y) {
  using V = Vec<T>;
  const auto each = [=](auto f) { apply_each(x, weight, count, y, f); };
  switch (function) {
    case Function::kExp:
      return each([](V a) { return exp(a); });
    case Function::kLog:
      return each([](V a) { return log_of_any<T>(a); });
    case Function::kSin:
      return each([](V a) { return sin(a); });
    case Function::kCos:
      return each([](V a) { return cos(a); });
    case Function::kTanh:
      return each([](V a) { return tanh(a); });
    case Function::kSqrt:
      return each([](V a) { return sqrt<T>(a); });
    case Function::kReciprocal:
      return each([](V a) { return V(1.0) / a; });
  }
}

template <class T>
class LossTile {
 public:
  LossTile(const JetLoss& loss, const LossRoom<T>& room, std::int64_t first, std::int64_t count)
      : loss_(loss), room_(room), first_(first), M_(count), panels_((count + kPanel<T> - 1) / kPanel<T>) {}

  T* slot(std::int64_t i) const { return room_.slot(i); }

  // What is given beside the results
  void load() const {
    std::int64_t next = first_given();
    for (std::int64_t i = 0; i < loss_.count_columns; ++i, ++next) {
      put(slot(next), [&](std::int64_t n) { return at<T>(loss_.inputs, n, loss_.columns[i]); });
    }
    for (std::int64_t k = 0; k < loss_.count_coefficients; ++k, ++next) fill(slot(next), T(loss_.coefficients[k]));
    fill(slot(next), T(1));
    put(room_.weight, [&](std::int64_t n) { return loss_.sample_weight.data ? at<T>(loss_.sample_weight, n) : T(1); });
  }

  // From the results in their slots to the adjoints in theirs; sums are added to those of the tiles before
  void run(T** slots) const {
    values(slots);
    for (std::int64_t i = 0; i < loss_.count_deviations; ++i) {
      const Deviation& of = loss_.deviations[i];
      const JetTerm& term = loss_.terms[of.term];
      if (of.target.data) put(room_.target, [&](std::int64_t n) { return at<T>(of.target, n); });
      room_.totals[of.term] += with_loss(term.loss.row, [&](auto rho) {
        return deviate<decltype(rho), T>(slot(of.value), of.target.data ? room_.target : nullptr, room_.weight,
                                         panels_ * kPanel<T>, term.unit, term.unit * term.weight * term.share,
                                         term.loss.parameters, loss_.back ? slot(of.slope) : nullptr);
      });
    }
    if (!loss_.back) return;
    execute(loss_.adjoint, panels_, slots);
    const int* bars = loss_.bars + first_given();
    for (std::int64_t i = 0; i < loss_.count_columns; ++i, ++bars) {
      T* to = static_cast<T*>(loss_.dinputs) + first_ * loss_.count_columns + i;
      for (std::int64_t m = 0; loss_.dinputs && m < M_; ++m) {
        to[m * loss_.count_columns] = *bars < 0 ? T(0) : slot(*bars)[m];
      }
    }
    for (std::int64_t k = 0; k < loss_.count_coefficients; ++k, ++bars) {
      double total = 0;
      for (std::int64_t m = 0; *bars >= 0 && m < M_; ++m) total += slot(*bars)[m];
      room_.dcoefficients[k] += total;
    }
  }

 private:
  const JetLoss& loss_;
  const LossRoom<T>& room_;
  const std::int64_t first_, M_, panels_;

  std::int64_t first_given() const { return loss_.count_results; }

  void fill(T* to, T value) const {
    for (std::int64_t m = 0; m < panels_ * kPanel<T>; ++m) to[m] = value;
  }

  // Of each sample a number, and 0 beyond them
  template <class F>
  void put(T* to, F number) const {
    for (std::int64_t m = 0; m < M_; ++m) to[m] = number(first_ + m);
    for (std::int64_t m = M_; m < panels_ * kPanel<T>; ++m) to[m] = 0;
  }

  // The sums, and functions amid them
  void values(T** slots) const {
    Program some = loss_.values;
    for (int i = 0; i < some.slots; ++i) slots[i] = slot(i);
    const auto until = [&](std::int64_t end) {
      some.count = end - (some.sums - loss_.values.sums);
      execute(some, panels_, slots);
      some.sums += some.count;
    };
    for (const Applied *f = loss_.functions, *end = f + loss_.count_functions; f < end; ++f) {
      until(f->before);
      apply(f->function, slots[f->of], room_.weight, panels_ * kPanel<T>, slots[f->to]);
    }
    until(loss_.values.count);
  }
};
