// Everything the core is told about one Sobolev step: plain structs of pointers, sizes and strides.
// What the enumerations mean is said in sobolev_kernels/enums.py.
// Sizes have the letters of docs/math.md: N samples, D inputs, O outputs, P directions, L linear layers.
// Strides count elements. A null pointer means "absent" for an input and "not wanted" for an output.
#pragma once

#include <cstdint>

#include "math/enums.h"

namespace sk {

struct Strided {
  const void* data = nullptr;
  std::int64_t stride[4] = {0, 0, 0, 0};
};

struct Target {
  TargetKind kind = TargetKind::kNone;
  Strided data;
};

struct Formula {
  int row = 0;
  double parameters[2] = {0, 0};
};

struct Layer {
  std::int64_t n_in = 0, n_out = 0;
  Strided weight;  // [n_out, n_in]
  Strided bias;    // [n_out]
  Formula activation;
  void* dweight = nullptr;  // [n_out, n_in], contiguous
  void* dbias = nullptr;    // [n_out]
};

struct Directions {
  Distribution distribution = Distribution::kGiven;
  Strided given;  // [P, N, W], or [P, N, O] for cotangents
  std::uint64_t seed = 0;
  std::uint64_t place = 0;                // the seed's offset in the lower half, the first sample's number in the upper
  const std::int64_t* seed_at = nullptr;  // on a device: where both are, instead of the numbers above
  bool shared = false;
  double magnitude = 1;
};

struct Jets;

// The terms of a loss: values, derivatives of order 1, of order 2.
constexpr int kMaxTerms = 3;

struct Step {
  Dtype dtype = Dtype::kFloat32;
  std::int64_t N = 0, D = 0, O = 0, P = 0, L = 0;
  std::int64_t W = 0;             // the first W inputs are differentiated
  int order = 1;                  // 2: also second directional derivatives
  const Jets* streams = nullptr;  // by which order 2 is made, or only the sum over directions of it (jets.h)
  const Layer* layers = nullptr;  // [L]
  Strided x;                      // [N, D]
  Projection projection = Projection::kDirections;
  Directions directions;  // P of them; cotangents if that is what is projected

  Residuals residuals = Residuals::kNone;
  Target target[kMaxTerms];  // with kCotangents the cotangents of y, of its derivatives, of its second derivatives
  Formula loss[kMaxTerms];
  Formula head{-1};  // what values and derivatives are those of; no row: the outputs as they are
  double weight[kMaxTerms] = {0, 0, 0};
  double share[kMaxTerms] = {0, 0, 0};  // what makes a sum of residuals the term
  Strided sample_weight;                // [2, N], of values and of derivatives
  Strided output_weight;                // [O]
  Strided derivative_weight;            // [P, N, O], or [P, N, W] of cotangents

  bool gradients = false;
  void* y = nullptr;            // [N, O]
  void* derivatives = nullptr;  // [P, N, O], or [P, N, W] of cotangents
  void* second = nullptr;       // [P, N, O], or [N, O] of their sum
  void* total = nullptr;        // the loss: [1], or [N] if per_sample
  void* terms = nullptr;        // [1 + order], or [1 + order, N] if per_sample: then wanted together with total
  bool per_sample = false;
  void* dx = nullptr;      // [N, D]
  void* dgiven = nullptr;  // [P, N, W], or [P, N, O] of cotangents: from the tangents' side alone

  Side side = Side::kTangents;
  std::int64_t tile = 0;   // samples
  std::int64_t group = 1;  // directions, or cotangents, that are carried side by side
  bool gather = false;     // gradients of weights are taken at the end from what all parts kept, where they can be
  bool in_place = false;   // weights are read where they lie, not packed, if their rows or columns are contiguous
  bool lockstep = false;   // values and tangents go side by side, without gaps, where they can
  int threads = 1;

  int count_terms() const { return 1 + order; }
  std::int64_t tiles() const { return (N + tile - 1) / tile; }
  bool at_once() const {  // all streams of derivatives
    return (projection == Projection::kCotangents || side == Side::kTangents) && group >= P;
  }
  bool by_one_gradient() const {  // the only output's, for all directions
    return projection == Projection::kDirections && side == Side::kGradients && P > 0 && O == 1;
  }
  // They can be if a part has one tile, whose streams go all at once.
  bool gathers() const {
    const bool whole = at_once() || by_one_gradient();
    return gather && gradients && residuals != Residuals::kNone && 0 < N && tiles() <= threads && whole;
  }
  // They can if neither waits for a whole pass of the other; the adjoint of directions is made on the other way alone.
  bool in_lockstep() const {
    return lockstep && P > 0 && projection == Projection::kDirections && at_once() && !dgiven;
  }
  bool headed() const { return head.row >= 0; }
  // numbers of one direction or cotangent
  std::int64_t drawn() const { return projection == Projection::kCotangents ? O : W; }
};

}  // namespace sk
