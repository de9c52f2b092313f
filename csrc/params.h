// Everything the core is told about one Sobolev step: plain structs of pointers, sizes and strides.
// Sizes have the letters of docs/math.md: N samples, D inputs, O outputs, P directions, L linear layers.
// Strides count elements. A null pointer means "absent" for an input and "not wanted" for an output.
#pragma once

#include <cstdint>

namespace sk {

enum class Dtype : int { kFloat32, kFloat64 };

// Where the tangents start from. Rows of `sobolev_kernels/math/directions.py`, in its order; kGiven is a tensor.
enum class Distribution : int { kSphere, kNormal, kRademacher, kCoordinate, kOrthonormal, kBasis, kGiven };

// What `derivative` holds: nothing, the dense Jacobian [N,O,D] of the target, or its tangents [P,N,O].
enum class DerivativeTarget : int { kNone, kJacobian, kTangents };

// Which side the derivatives are computed from: a tangent chain for each of P directions, or a gradient for each of
// O outputs, projected on all directions. The same numbers; the work goes with 1 + P or 1 + O.
enum class Side : int { kTangents, kGradients };

// What the backward pass starts from: nothing (forward only), a loss, or cotangents in place of the targets.
enum class Residuals : int { kNone, kLoss, kCotangents };

struct Strided {
  const void* data = nullptr;
  std::int64_t stride[3] = {0, 0, 0};
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
  Strided given;  // [P, N, D]
  std::uint64_t seed = 0;
  std::uint32_t offset = 0;
  bool shared = false;
  double scale = 1;
};

struct Step {
  Dtype dtype = Dtype::kFloat32;
  std::int64_t N = 0, D = 0, O = 0, P = 0, L = 0;
  const Layer* layers = nullptr;  // [L]
  Strided x;                      // [N, D]
  Directions directions;

  Residuals residuals = Residuals::kNone;
  Strided values;  // [N, O]: targets, or cotangents of y
  DerivativeTarget derivative_target = DerivativeTarget::kNone;
  Strided derivative;     // see DerivativeTarget; with kCotangents the cotangents of the tangents
  Strided sample_weight;  // [N]: multiplies every residual's slope
  Formula value_loss, derivative_loss;
  double value_weight = 0, derivative_weight = 0;
  double value_scale = 0, derivative_scale = 0;

  bool gradients = false;
  void* y = nullptr;         // [N, O]
  void* tangents = nullptr;  // [P, N, O]
  void* loss = nullptr;      // [1], or [N] if per_sample
  void* terms = nullptr;     // [2], or [2, N] if per_sample; wanted together with loss
  bool per_sample = false;
  void* dx = nullptr;  // [N, D]

  Side side = Side::kTangents;
  std::int64_t tile = 0;  // samples
  int threads = 1;
};

}  // namespace sk
