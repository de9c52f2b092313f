// Everything the core is told about named derivatives of a student: which streams go through its layers, and by which
// products they are made (docs/math.md, section 15). Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

// c a b, of numbers in slots
struct Product {
  int a, b;
  double wide;
  float narrow;  // the same coefficient
};

// What is put into a slot: the sum of terms [begin, end), of which those before `scaled` have the coefficient 1
struct SumOfProducts {
  int to;
  std::int64_t begin, scaled, end;
};

constexpr int kDerivatives = 6;  // σ to σ⁽⁵⁾

// Elementwise work at an activation. Slots are, one after the other, what is read and what is made, and then scratch.
struct Program {
  const SumOfProducts* sums = nullptr;
  const Product* terms = nullptr;
  std::int64_t count = 0;
  int slots = 0;
  int sigma[kDerivatives] = {-1, -1, -1, -1, -1, -1};  // where derivatives of the activation go, those that are wanted
};

struct JetLayer {
  Layer layer;
  int given = 0, made = 0, kept = 0;  // streams of z, of h, and of σ'(z) for the adjoint
  bool value = true;                  // whether the first of those given is the value, to which the bias belongs
  Program values;                     // slots z, h
  Program forward;                    // z, h, g
  Program adjoint;                    // h̄, g, z̄
};

// A part of a result: output `column` of a stream that the last layer makes
struct Named {
  int result, stream, column;
  double coefficient;
};

struct Jets {
  Dtype dtype = Dtype::kFloat32;
  std::int64_t N = 0, D = 0, O = 0, L = 0;
  int directions = 0;                // streams that the inputs have beside the value
  const JetLayer* layers = nullptr;  // [L]
  const Named* named = nullptr;
  std::int64_t count_named = 0, results = 0;
  Strided x;                         // [N, D]
  Strided v;                         // [directions, N, D]
  void* out = nullptr;               // [results, N]
  const void* cotangents = nullptr;  // [results, N]
  void* dx = nullptr;                // [N, D]
  void* dv = nullptr;                // [directions, N, D]
  std::int64_t tile = 0;             // samples
  int threads = 1;

  bool gradients() const { return cotangents != nullptr; }
  std::int64_t tiles() const { return (N + tile - 1) / tile; }
};

}  // namespace sk
