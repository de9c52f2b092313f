// A loss of values and derivatives that were computed elsewhere, the weighted means of pointwise terms, and its slopes.
#pragma once

#include <cstdint>
#include <vector>

#include "../params.h"

namespace sk::cpu {

struct MeanLoss {
  bool wide = false;  // numbers of 8 bytes, not of 4
  Formula losses[2];  // of values, of derivatives
  double weights[2] = {1, 1};
  std::int64_t N = 0, O = 0, D = 0, P = 0;
  // Derivatives are the tangents [P, N, O] along v [P, N, D], projections of the gradients [N, D] of all O outputs;
  // otherwise P gradients themselves.
  bool projected = false;

  std::int64_t gradients() const { return projected ? O : P; }
};

// Of arrays without gaps: what is read, y [N, O], targets of values and of derivatives, v if there are tangents, and
// the gradients; what is written, the loss and its derivatives by y and by each gradient.
void mean_loss(const MeanLoss& loss, const std::vector<const void*>& read, const std::vector<void*>& written);

}  // namespace sk::cpu
