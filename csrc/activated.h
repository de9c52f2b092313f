// Everything the core is told about an activation of a value and its tangents, which is one pass over the numbers, and
// one over those that its way back is of; or of a value alone, beside which its slope is a result. Conventions as in
// params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

struct Activated {
  Dtype dtype = Dtype::kFloat32;
  Formula activation;
  std::int64_t n = 0, S = 0;  // numbers of a value; tangents
  int threads = 1;
  const void *z = nullptr, *d = nullptr;  // [n], [S, n]
  void *y = nullptr, *t = nullptr;        // σ(z), σ'(z) d
  void* slopes = nullptr;                 // σ'(z) [n] and σ''(z) [n], which the way back reads; of a line the first
  // Of the way back: adjoints of y, if there are any, and of t; those of z and, if wanted, of d.
  const void *bar_y = nullptr, *bar_t = nullptr;
  void *bar_z = nullptr, *bar_d = nullptr;
  // Of a value alone: y and its slope, of z; or, on the way back, the adjoint of z from theirs, of which one may lack.
  bool alone = false;
  const void* bar_slope = nullptr;

  bool back() const { return bar_z != nullptr; }
};

}  // namespace sk
