// A run-time row of a table -> a compile-time type, once per axis; `f` is called with a value of that type.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

#define SK_CASE(row, name) \
  case row:                \
    return f(name{});

template <class F>
auto with_activation(int row, F f) {
  switch (row) {
    SK_ACTIVATIONS(SK_CASE)
    default:
      throw std::invalid_argument("an activation that this core was not built with");
  }
}

// A pointwise loss
template <class F>
auto with_loss(int row, F f) {
  switch (row) {
    SK_LOSSES(SK_CASE)
    default:
      throw std::invalid_argument("a loss that this core was not built with");
  }
}

// A loss of sums over a sample; its rows go on where those of the pointwise losses end
template <class F>
auto with_coupled(int row, F f) {
  switch (row) {
    SK_COUPLED(SK_CASE)
    default:
      throw std::invalid_argument("a coupled loss that this core was not built with");
  }
}

// A loss of what a head is a function of; its rows go on further
template <class F>
auto with_likelihood(int row, F f) {
  switch (row) {
    SK_LIKELIHOODS(SK_CASE)
    default:
      throw std::invalid_argument("a likelihood that this core was not built with");
  }
}

// A head of each output by itself, or of all outputs of a sample, whose rows go on where those end
template <class F>
auto with_head(int row, F f) {
  switch (row) {
    SK_SEPARATE(SK_CASE)
    SK_NORMALISED(SK_CASE)
    default:
      throw std::invalid_argument("a head that this core was not built with");
  }
}

inline bool is_coupled(const Formula& loss) { return loss.row >= kPointwise && loss.row < kResidual; }
inline bool is_likelihood(const Formula& loss) { return loss.row >= kResidual; }
inline bool is_normalised(const Formula& head) { return head.row >= kSeparate; }

#undef SK_CASE
