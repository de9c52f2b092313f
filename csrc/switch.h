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
      return f(ActIdentity{});
  }
}

template <class F>
auto with_loss(int row, F f) {
  switch (row) {
    SK_LOSSES(SK_CASE)
    default:
      return f(LossMse{});
  }
}

#undef SK_CASE
