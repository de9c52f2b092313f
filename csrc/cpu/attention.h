// Attention of as many sequences as a register has lanes (csrc/attention.h), by whose numbers all products are sums in
// registers.
//
// With s = scale q kᵀ and p = softmax(s) it is y = p v. Of tangents, ṡ = scale (q̇ kᵀ + q k̇ᵀ), ṗ = p (ṡ - mean(ṡ)),
// where a mean is that of a row by p, and t = ṗ v + p v̇. Of the adjoint u of y, or of t, with e = u vᵀ and g = p (e -
// mean(e)):
//     of q scale g k, of k scale gᵀ q, of v pᵀ u; those of tangents are these of t's adjoint,
// and what t's adjoint owes the values is
//     scale (g k̇ + h k) to q, scale (gᵀ q̇ + hᵀ q) to k and ṗᵀ u to v,
// with h = p (f - mean(f)), f = u v̇ᵀ + (ṡ - mean(ṡ)) e - ṡ mean(e).
//
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
class AttentionPanel {
  using V = Vec<T>;

 public:
  explicit AttentionPanel(const Attention& told)
      : told_(told), room_(std::size_t(size() + 64 / sizeof(T))), ld_(apart_in_cache<T>(std::max(told.E, told.F))) {
    Arena arena(aligned());
    take(arena);
  }

  void run(std::int64_t first) {
    first_ = first;
    count_ = std::min<std::int64_t>(kPanel<T>, told_.B - first);
    load(told_.q, 0, told_.L, told_.E, q_);
    load(told_.k, 0, told_.M, told_.E, k_);
    load(told_.v, 0, told_.M, told_.F, v_);
    softmax();
    told_.back() ? back() : forward();
  }

 private:
  const Attention& told_;
  std::vector<T> room_;
  const std::int64_t ld_;
  std::int64_t first_ = 0, count_ = 0;
  T *rows_, *q_, *k_, *v_, *p_;                         // values
  T *dq_, *dk_, *dv_, *ds_, *dp_;                       // of a tangent, ṡ and ṗ
  T *u_, *e_, *g_, *h_, *y_;                            // of an adjoint; results [L, F]
  T *bar_q_, *bar_k_, *bar_v_, *of_q_, *of_k_, *of_v_;  // adjoints of values and of a tangent

  void take(Arena& arena) {
    const std::int64_t L = told_.L, M = told_.M, E = told_.E, F = told_.F;
    rows_ = arena.take<T>(kPanel<T> * apart_in_cache<T>(std::max(E, F)));
    for (T** each : {&q_, &dq_, &bar_q_, &of_q_}) *each = arena.take<T>(L * E * kPanel<T>);
    for (T** each : {&k_, &dk_, &bar_k_, &of_k_}) *each = arena.take<T>(M * E * kPanel<T>);
    for (T** each : {&v_, &dv_, &bar_v_, &of_v_}) *each = arena.take<T>(M * F * kPanel<T>);
    for (T** each : {&u_, &y_}) *each = arena.take<T>(L * F * kPanel<T>);
    for (T** each : {&p_, &ds_, &dp_, &e_, &g_, &h_}) *each = arena.take<T>(L * M * kPanel<T>);
  }
  std::int64_t size() {
    Arena counting(nullptr);
    take(counting);
    return std::int64_t(counting.used() / sizeof(T));
  }
  void* aligned() { return reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(room_.data()) + 63) / 64 * 64); }

  std::int64_t seen(std::int64_t i) const { return told_.causal ? std::min(i + 1, told_.M) : told_.M; }
  static V at(const T* array, std::int64_t i) { return V::load(array + i * kPanel<T>); }
  static void put(V x, T* array, std::int64_t i) { x.store(array + i * kPanel<T>); }

  // Numbers of each sequence as panels [positions][n], and back
  void load(const Positions& numbers, std::int64_t s, std::int64_t positions, std::int64_t n, T* to) {
    for (std::int64_t i = 0; i < positions; ++i, to += n * kPanel<T>) {
      const T* from = static_cast<const T*>(numbers.data) + s * numbers.stream + first_ * numbers.sequence;
      rows_apart(from + i * numbers.position, numbers.sequence, n, count_, rows_, ld_);
      for (std::int64_t j = 0; j < n; j += kPanel<T>) {
        T square[kPanel<T> * kPanel<T>];
        transpose_square(rows_ + j, ld_, count_, square, kPanel<T>);
        std::copy_n(square, std::min<std::int64_t>(kPanel<T>, n - j) * kPanel<T>, to + j * kPanel<T>);
      }
    }
  }
  void store(const T* from, const Positions& numbers, std::int64_t s, std::int64_t positions, std::int64_t n) const {
    for (std::int64_t i = 0; numbers.data && i < positions; ++i, from += n * kPanel<T>) {
      T* to = static_cast<T*>(numbers.data) + s * numbers.stream + first_ * numbers.sequence;
      panels_to_array(from, n, count_, to + i * numbers.position, numbers.sequence);
    }
  }

  // to [i][j] = factor a_i · b_j of n numbers, where j is seen by i; or added to it
  void dots(const T* a, const T* b, std::int64_t n, T factor, bool add, T* to) const {
    for (std::int64_t i = 0; i < told_.L; ++i) {
      for (std::int64_t j = 0; j < seen(i); ++j) {
        V sum(0.0);
        for (std::int64_t e = 0; e < n; ++e) sum = sum + at(a, i * n + e) * at(b, j * n + e);
        sum = sum * V(double(factor));
        put(add ? at(to, i * told_.M + j) + sum : sum, to, i * told_.M + j);
      }
    }
  }
  // to [i] = or += factor sum over j of w_ij b_j
  void over_seen(const T* w, const T* b, std::int64_t n, T factor, bool add, T* to) const {
    for (std::int64_t i = 0; i < told_.L; ++i) {
      for (std::int64_t e = 0; e < n; ++e) {
        V sum(0.0);
        for (std::int64_t j = 0; j < seen(i); ++j) sum = sum + at(w, i * told_.M + j) * at(b, j * n + e);
        sum = sum * V(double(factor));
        put(add ? at(to, i * n + e) + sum : sum, to, i * n + e);
      }
    }
  }
  // to [j] = or += factor sum over i of w_ij a_i
  void over_seeing(const T* w, const T* a, std::int64_t n, T factor, bool add, T* to) const {
    for (std::int64_t j = 0; j < told_.M; ++j) {
      for (std::int64_t e = 0; e < n; ++e) {
        V sum(0.0);
        for (std::int64_t i = told_.causal ? j : 0; i < told_.L; ++i) {
          sum = sum + at(w, i * told_.M + j) * at(a, i * n + e);
        }
        sum = sum * V(double(factor));
        put(add ? at(to, j * n + e) + sum : sum, to, j * n + e);
      }
    }
  }

  V mean(const T* row, std::int64_t i) const {
    V sum(0.0);
    for (std::int64_t j = 0; j < seen(i); ++j) sum = sum + at(p_, i * told_.M + j) * at(row, j);
    return sum;
  }
  // to = p (from - mean(from))
  void through_softmax(const T* from, T* to) const {
    for (std::int64_t i = 0; i < told_.L; ++i) {
      const T* row = from + i * told_.M * kPanel<T>;
      const V mean_of_row = mean(row, i);
      for (std::int64_t j = 0; j < seen(i); ++j) {
        put(at(p_, i * told_.M + j) * (at(row, j) - mean_of_row), to, i * told_.M + j);
      }
    }
  }

  void softmax() {
    dots(q_, k_, told_.E, T(told_.scale), false, p_);
    for (std::int64_t i = 0; i < told_.L; ++i) {
      T* row = p_ + i * told_.M * kPanel<T>;
      V most = at(row, 0), sum(0.0);
      for (std::int64_t j = 1; j < seen(i); ++j) most = where(at(row, j) < most, most, at(row, j));
      for (std::int64_t j = 0; j < seen(i); ++j) {
        const V each = exp(at(row, j) - most);
        sum = sum + each;
        put(each, row, j);
      }
      const V share = V(1.0) / sum;
      for (std::int64_t j = 0; j < seen(i); ++j) put(at(row, j) * share, row, j);
    }
  }

  // A tangent's ṡ and ṗ
  void tangent(std::int64_t s) {
    load(told_.dq, s, told_.L, told_.E, dq_);
    load(told_.dk, s, told_.M, told_.E, dk_);
    load(told_.dv, s, told_.M, told_.F, dv_);
    dots(dq_, k_, told_.E, T(told_.scale), false, ds_);
    dots(q_, dk_, told_.E, T(told_.scale), true, ds_);
    through_softmax(ds_, dp_);
  }
  void result(std::int64_t s) {
    over_seen(dp_, v_, told_.F, T(1), false, y_);
    over_seen(p_, dv_, told_.F, T(1), true, y_);
    store(y_, told_.t, s, told_.L, told_.F);
  }

  void forward() {
    over_seen(p_, v_, told_.F, T(1), false, y_);
    store(y_, told_.y, 0, told_.L, told_.F);
    for (std::int64_t s = 0; s < told_.S; ++s) {
      tangent(s);
      result(s);
    }
  }

  // Adjoints of q, k and v, or of tangents of these, from that of a result
  void gradient(const Positions& bar, std::int64_t s, bool wanted, T* of_q, T* of_k, T* of_v) {
    const T scale = T(told_.scale);
    load(bar, s, told_.L, told_.F, u_);
    dots(u_, v_, told_.F, T(1), false, e_);
    through_softmax(e_, g_);
    if (!wanted) return;
    over_seen(g_, k_, told_.E, scale, false, of_q);
    over_seeing(g_, q_, told_.E, scale, false, of_k);
    over_seeing(p_, u_, told_.F, T(1), false, of_v);
  }

  void back() {
    const std::int64_t L = told_.L, M = told_.M, E = told_.E, F = told_.F;
    if (told_.bar_y.data) {
      gradient(told_.bar_y, 0, true, bar_q_, bar_k_, bar_v_);
    } else {
      std::fill_n(bar_q_, L * E * kPanel<T>, T(0));
      std::fill_n(bar_k_, M * E * kPanel<T>, T(0));
      std::fill_n(bar_v_, M * F * kPanel<T>, T(0));
    }
    for (std::int64_t s = 0; s < told_.S; ++s) {
      tangent(s);
      if (told_.t.data) result(s);
      gradient(told_.bar_t, s, told_.bar_dq.data, of_q_, of_k_, of_v_);
      store(of_q_, told_.bar_dq, s, L, E);
      store(of_k_, told_.bar_dk, s, M, E);
      store(of_v_, told_.bar_dv, s, M, F);
      owe();
    }
    store(bar_q_, told_.bar_q, 0, L, E);
    store(bar_k_, told_.bar_k, 0, M, E);
    store(bar_v_, told_.bar_v, 0, M, F);
  }

  // Adds what the adjoint of a tangent at hand owes the values.
  void owe() {
    const T scale = T(told_.scale);
    dots(u_, dv_, told_.F, T(1), false, h_);
    for (std::int64_t i = 0; i < told_.L; ++i) {
      const std::int64_t row = i * told_.M;
      const V of_ds = mean(ds_ + row * kPanel<T>, i), of_e = mean(e_ + row * kPanel<T>, i);
      for (std::int64_t j = row; j < row + seen(i); ++j) {
        put(at(h_, j) + (at(ds_, j) - of_ds) * at(e_, j) - at(ds_, j) * of_e, h_, j);
      }
    }
    through_softmax(h_, h_);
    over_seen(g_, dk_, told_.E, scale, true, bar_q_);
    over_seen(h_, k_, told_.E, scale, true, bar_q_);
    over_seeing(g_, dq_, told_.E, scale, true, bar_k_);
    over_seeing(h_, q_, told_.E, scale, true, bar_k_);
    over_seeing(dp_, u_, told_.F, T(1), true, bar_v_);
  }
};

template <class T>
void attention(const Attention& told, int part, int parts) {
  AttentionPanel<T> panel(told);
  const Range mine((told.B + kPanel<T> - 1) / kPanel<T>, part, parts);
  for (std::int64_t i = mine.begin; i < mine.end; ++i) panel.run(i * kPanel<T>);
}
