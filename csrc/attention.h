// Everything the core is told about attention, softmax(scale q kᵀ) v of each of B sequences, of a value with its
// tangents: one pass, and one back. Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

// Numbers [B, positions, n] without gaps in the last dim; of tangents one after the other
struct Positions {
  void* data = nullptr;
  std::int64_t sequence = 0, position = 0, stream = 0;  // strides
};

struct Attention {
  Dtype dtype = Dtype::kFloat32;
  double scale = 1;
  bool causal = false;                                    // a position sees none after itself
  std::int64_t B = 0, L = 0, M = 0, E = 0, F = 0, S = 0;  // positions of q and of k; numbers of q and of v; tangents
  int threads = 1;
  Positions q, k, v, dq, dk, dv;     // and their tangents
  Positions y, t;                    // results, if wanted: of the way back of t alone
  Positions bar_y, bar_t;            // of the way back: their adjoints, that of y if there is one
  Positions bar_q, bar_k, bar_v;     // those of q, k and v
  Positions bar_dq, bar_dk, bar_dv;  // those of tangents, if wanted

  bool back() const { return bar_q.data != nullptr; }
};

}  // namespace sk
