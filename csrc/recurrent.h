// Everything the core is told about a recurrent layer, a GRU over all steps of its sequences (docs/math.md, section 4;
// csrc/chain.h has the passes of a value alone). Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

// Of a value alone those of a chain; of a value with its tangents one pass, and its way back.
enum class RecurrentPass : int { kValues, kGradient, kAlong, kBack, kPairs, kPairsBack };
constexpr int kRecurrentPasses = 6;

// Sequences are [N, T, n], or [T, N, n] if steps come first; those of tangents [S, ...]. What passes keep is of all
// samples in panels, [panel][T][arrays][H][kPanel]: of values and what is owed to them five arrays, of a gradient four,
// of each tangent five (csrc/cpu/recurrent.h).
struct Recurrent {
  static constexpr std::int64_t L = 2;  // what inputs and states are multiplied by, 3 H rows each: gates r, z, n
  static constexpr int kValueArrays = 5, kGradientArrays = 4;

  Dtype dtype = Dtype::kFloat32;
  RecurrentPass pass = RecurrentPass::kValues;
  std::int64_t N = 0, T = 0, I = 0, H = 0, S = 0;
  bool steps_first = false;
  Layer layers[L];
  const void *x = nullptr, *d = nullptr;          // inputs and their tangents
  const void* first = nullptr;                    // the first state [N, H]
  const void *given = nullptr, *moved = nullptr;  // u, c, or the adjoints of values, if there are any, and of tangents
  void *out = nullptr, *out_moved = nullptr;      // states and tangents, or adjoints of inputs, where they are wanted
  void *values = nullptr, *adjoint = nullptr, *owed = nullptr, *tangents = nullptr;  // what passes keep
  std::int64_t tile = 0;                                                             // samples
  int threads = 1;
  bool in_place = false;

  std::int64_t tiles() const { return (N + tile - 1) / tile; }
  bool backward() const {
    return pass == RecurrentPass::kGradient || pass == RecurrentPass::kBack || pass == RecurrentPass::kPairsBack;
  }
  bool sums() const { return pass != RecurrentPass::kGradient && (backward() || pass == RecurrentPass::kAlong); }
  // Whether values go through it, or their adjoints as they are at last; and how many tangents, or adjoints of them
  bool of_values() const { return pass != RecurrentPass::kGradient && pass != RecurrentPass::kAlong; }
  std::int64_t others() const { return of_values() ? S : 1; }
  std::int64_t streams() const { return of_values() + others(); }
};

}  // namespace sk
