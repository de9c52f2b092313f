// Everything the core is told about a norm of a value and its tangents: one that standardises rows, or one that scales
// and shifts channels. Conventions as in params.h.
#pragma once

#include <cstdint>

#include "params.h"

namespace sk {

struct Normed {
  Dtype dtype = Dtype::kFloat32;
  bool rows_alone = true;  // each row [n] is standardised; otherwise n numbers of a channel are scaled alike
  bool centred = true;
  double eps = 0;
  std::int64_t rows = 0, n = 0, S = 0;  // tangents
  std::int64_t channels = 1;            // a row is of channel row % channels
  int threads = 1;
  const void *v = nullptr, *d = nullptr;            // [rows, n], [S, rows, n]
  const void *weight = nullptr, *bias = nullptr;    // [n], or of each channel; none: 1 and 0
  void *y = nullptr, *t = nullptr;                  // results
  const void *bar_y = nullptr, *bar_t = nullptr;    // of the way back: their adjoints
  void *bar_v = nullptr, *bar_d = nullptr;          // those of v and, if wanted, of d
  void *bar_weight = nullptr, *bar_bias = nullptr;  // if wanted

  bool back() const { return bar_v != nullptr; }
  std::int64_t weights() const { return rows_alone ? n : channels; }
};

}  // namespace sk
