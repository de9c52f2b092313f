// What a formula returns. Included like primitives.h, inside a namespace: hence no #pragma once.

template <class T>
struct Derivatives {
  T value, d1, d2, d3;
};

// Of an activation, all that there are
template <class T>
struct Jet {
  T value, d1, d2, d3, d4, d5;
};

template <class T>
struct Residual {
  T value, slope;
};

// What a head gives for a tangent t and a cotangent u: its value, Dh[t], Dhᵀu, and the derivative of u·Dh[t]
template <class T>
struct Headed {
  T value, tangent, pulled, owed;
};

// A loss of the sums of r², a², a·t, t² and weights over a sample's numbers, and its partial derivatives
template <class T>
struct Coupled {
  T value, rr, aa, at;
};
