// Heads of a tile's outputs (docs/math.md, section 14): values, tangents, cotangents, and what these owe the outputs.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// What a head is a function of, a = z / temperature; of one that is normalised less its log-sum-exp, and s = e^a
template <class T>
void logits(const Formula& head, const T* z, std::int64_t n, T* a, T* s) {
  using V = Vec<T>;
  const V temperature(head.parameters[0]);
  const auto each = [n](auto f) {
    for (std::int64_t i = 0; i < n * kPanel<T>; i += kPanel<T>) f(i);
  };
  each([&](std::int64_t i) { (V::load(z + i) / temperature).store(a + i); });
  if (!is_normalised(head)) return;
  V most = V::load(a), total(0.0);
  each([&](std::int64_t i) { most = where(V::load(a + i) > most, V::load(a + i), most); });
  each([&](std::int64_t i) {
    const V e = exp(V::load(a + i) - most);
    e.store(s + i);
    total = total + e;
  });
  const V log_total = log(total);
  each([&](std::int64_t i) {
    (V::load(a + i) - most - log_total).store(a + i);
    (V::load(s + i) / total).store(s + i);
  });
}

// f(i, what head H gives) of each of n outputs, for tangents t and cotangents u, or none of them
template <class H, class T, class F>
void each_of_head(const T* a, const T* s, const T* t, const T* u, std::int64_t n, F f) {
  using V = Vec<T>;
  const auto at = [](const T* array, std::int64_t i) { return array ? V::load(array + i) : V(0.0); };
  if constexpr (H::kArguments == 3) {
    for (std::int64_t i = 0; i < n * kPanel<T>; i += kPanel<T>)
      f(i, H::call(V::load(a + i), at(t, i), at(u, i), nullptr));
  } else {
    V st(0.0), su(0.0), stu(0.0), uu(0.0);
    for (std::int64_t i = 0; (t || u) && i < n * kPanel<T>; i += kPanel<T>) {
      const V e = V::load(s + i), one = at(t, i), other = at(u, i);
      st = st + e * one;
      su = su + e * other;
      stu = stu + e * one * other;
      uu = uu + other;
    }
    for (std::int64_t i = 0; i < n * kPanel<T>; i += kPanel<T>) {
      f(i, H::call(V::load(a + i), V::load(s + i), at(t, i), at(u, i), st, su, stu, uu, nullptr));
    }
  }
}

template <class T>
class Heads : protected Lockstep<T> {
  using V = Vec<T>;

 protected:
  using Base = Streams<T>;
  using Base::last;
  using Base::size;
  using Base::step_;
  using Base::streams_;
  using Base::workspace_;
  using Lockstep<T>::Lockstep;

  // Values and tangents of the outputs, or of their head
  T* values() const { return step_.headed() ? workspace_.head_value : workspace_.h[last()]; }
  T* tangents() const { return step_.headed() ? workspace_.head_tangent : workspace_.tangent[last()]; }

  void head_values() {
    for (std::int64_t i = 0; i < size(step_.O); i += step_.O * kPanel<T>) {
      logits(step_.head, workspace_.h[last()] + i, step_.O, workspace_.head_a + i, workspace_.head_s + i);
    }
    of_head(step_.head.row, 1, nullptr, nullptr,
            [&](std::int64_t i, std::int64_t, const Headed<V>& head) { head.value.store(workspace_.head_value + i); });
  }

  // From those of the outputs, of the streams at hand
  void head_tangents() {
    const auto store = [&](auto, std::int64_t j, const Headed<V>& head) {
      (head.tangent * per_temperature()).store(workspace_.head_tangent + j);
    };
    of_head(step_.head.row, streams_, workspace_.tangent[last()], nullptr, store);
  }

  // The cotangents of the outputs that those of the head are, of the streams at hand
  void head_pulls(const T* u, T* to) {
    of_head(step_.head.row, streams_, nullptr, u,
            [&](auto, std::int64_t j, const Headed<V>& head) { (head.pulled * per_temperature()).store(to + j); });
  }

  // What u · Dh[t], of the streams at hand, owes the outputs
  void head_owes(const T* t, const T* u) {
    const V square = per_temperature() * per_temperature();
    of_head(step_.head.row, streams_, t, u,
            [&](std::int64_t i, auto, const Headed<V>& head) { Base::add(workspace_.head_q, i, head.owed * square); });
  }

  // The adjoint of the outputs, from that of the head's values, or of what a likelihood is of
  void head_backward(bool likely) {
    T* slope = workspace_.z_of[kValue][last()];
    const bool normalised = is_normalised(step_.head);
    const auto store = [&](std::int64_t i, V pulled) {
      (pulled * per_temperature() + V::load(workspace_.head_q + i)).store(slope + i);
    };
    if (likely && !normalised) {
      for (std::int64_t i = 0; i < size(step_.O); i += kPanel<T>) store(i, V::load(slope + i));
      return;
    }
    of_head(likely ? kHeadLogSoftmaxRow : step_.head.row, 1, nullptr, slope,
            [&](std::int64_t i, auto, const Headed<V>& head) { store(i, head.pulled); });
  }

  // Seeds of the gradients of the head, whose cotangents are kept
  void head_seeds() {
    std::copy_n(workspace_.u, streams_ * size(step_.O), workspace_.head_tangent);
    head_pulls(workspace_.head_tangent, workspace_.u);
  }

 private:
  // f(i, j, what the head of row `head` gives) of the outputs of so many streams with their tangents t and cotangents
  // u, or none; i is where it is in its stream, j where in all of them
  template <class F>
  void of_head(int head, std::int64_t streams, const T* t, const T* u, F f) {
    with_head(head, [&](auto h) {
      for (std::int64_t s = 0; s < streams; ++s) {
        for (std::int64_t i = 0; i < size(step_.O); i += step_.O * kPanel<T>) {
          const std::int64_t j = s * size(step_.O) + i;
          const auto at_panel = [&](std::int64_t row, const Headed<V>& what) { f(i + row, j + row, what); };
          each_of_head<decltype(h)>(workspace_.head_a + i, workspace_.head_s + i, t ? t + j : nullptr,
                                    u ? u + j : nullptr, step_.O, at_panel);
        }
      }
    });
  }

  V per_temperature() const { return V(1.0) / V(step_.head.parameters[0]); }
};
