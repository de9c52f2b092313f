// Everything the core is told about a convolution of small images: what it gives, its adjoint, and the adjoint of its
// weight, each if wanted, all of the same samples, in float32. A transposed one goes from outputs to inputs.
// Conventions as in params.h.
#pragma once

#include <cstdint>
#include <vector>

#include "params.h"

namespace sk {

// How one of the two dims of the inputs lies to that of the outputs
struct Slid {
  std::int64_t inputs = 1, kernel = 1, outputs = 1;  // how many there are
  std::int64_t stride = 1, padding = 0, dilation = 1;

  // The input that a tap of an output is of; it may be none
  std::int64_t input(std::int64_t output, std::int64_t tap) const { return output * stride + tap * dilation - padding; }
};

// So many numbers of packed weights, each of a row, and of channels, which both lie one after the other
struct Taps {
  std::int64_t weight, from, count;
};

// Of each position that is computed, the taps that lie within the images: those from begin[i] to begin[i + 1]
struct Reaches {
  std::vector<Taps> taps;
  std::vector<std::size_t> begin;
};

struct Convolved {
  std::int64_t N = 0, C = 0, O = 0;  // samples, channels of the inputs and of the outputs
  Slid dims[2];
  bool transposed = false;  // whether the bias is of the inputs
  int threads = 1, lanes = 1;
  const Reaches *of_outputs = nullptr, *of_inputs = nullptr;
  const void *inputs = nullptr, *outputs = nullptr;  // [N, C, ...] and [N, O, ...]
  const void *weight = nullptr, *bias = nullptr;     // [O, C, kernel], and of each channel that is made
  void *to_outputs = nullptr, *to_inputs = nullptr;  // what is made of those on the other side
  void *dweight = nullptr, *dbias = nullptr;         // of both, and of what has the bias

  std::int64_t positions() const { return dims[0].inputs * dims[1].inputs; }
  std::int64_t positions_out() const { return dims[0].outputs * dims[1].outputs; }
  std::int64_t kernel() const { return dims[0].kernel * dims[1].kernel; }
  std::int64_t tiles() const { return (N + 2 * lanes - 1) / (2 * lanes); }
};

}  // namespace sk
