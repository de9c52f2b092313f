// What a formula returns. Included like primitives.h, inside a namespace: hence no #pragma once.

template <class T>
struct Derivatives {
  T value, d1, d2, d3;
};

template <class T>
struct Residual {
  T value, slope;
};

// A loss of the sums of r², a², a·t, t² and weights over a sample's numbers, and its partial derivatives
template <class T>
struct Coupled {
  T value, rr, aa, at;
};
