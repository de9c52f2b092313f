// Everything the core is told about a chain of layers amid a network of other operations (docs/math.md, section 4): it
// is run in passes between which others do their work, and what one has computed another reads, in panels of whichever
// instruction set it is. Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

// y; the gradient g = Jᵀu; of g's adjoint c the tangent J c, which is that of u, and what g owes the values; and the
// adjoints of all else, from that of y and from what is owed.
enum class Pass : int { kValues, kGradient, kAlong, kBack };
constexpr int kPasses = 4;

struct Chain {
  Dtype dtype = Dtype::kFloat32;
  Pass pass = Pass::kValues;
  std::int64_t N = 0, L = 0;
  const Layer* layers = nullptr;  // [L]; gradients of weights have their places where they are wanted
  const void* x = nullptr;        // [N, D], of the first pass and the last
  const void* given = nullptr;    // u [N, O], c [N, D], the adjoint of y [N, O] or none
  void* out = nullptr;            // y [N, O], g [N, D], J c [N, O] if wanted, the adjoint of x [N, D] if wanted
  // What passes keep, as many numbers as sizes_of says: σ' of curved activations, all else of the values, what a
  // gradient is made of, and what it owes, of the size of the slopes.
  void *slopes = nullptr, *values = nullptr, *adjoint = nullptr, *owed = nullptr;
  std::int64_t tile = 0;  // samples
  int threads = 1;
  bool in_place = false;  // as of a step

  std::int64_t tiles() const { return (N + tile - 1) / tile; }
  bool backward() const { return pass == Pass::kGradient || pass == Pass::kBack; }
  bool sums() const { return pass == Pass::kAlong || pass == Pass::kBack; }
};

struct ChainSizes {
  std::int64_t slopes = 0, values = 0, adjoint = 0;
};

}  // namespace sk
