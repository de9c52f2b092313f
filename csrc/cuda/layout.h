// From a step to the kernels' arguments: the one place where the layout of a block's shared memory is decided.
#pragma once

#include <stdexcept>
#include <string>

#include "arguments.h"

namespace sk::cuda {

inline std::int32_t padded(std::int64_t n) { return std::int32_t((n + 15) / 16 * 16); }

// How a block may go about its tiles, the best first; the first that fits is taken. Two blocks of a multiprocessor wait
// for different things; parameters beside the tile save the second-level cache a read for each product, gradients
// beside it a read and a write. Not yet measured on a GPU.
struct Way {
  int samples;
  bool parameters, gradients;
  int blocks;
};
constexpr Way kWays[] = {
    {64, true, true, 2},  {32, true, true, 2},   {64, true, true, 1},   {32, true, true, 1},
    {64, true, false, 1}, {32, true, false, 1},  {32, false, false, 2}, {32, false, false, 1},
    {16, true, true, 1},  {16, false, false, 2}, {16, false, false, 1},
};

// Of a multiprocessor's shared memory, all of which one block may have, each block also takes 1 KiB of its own.
inline std::uint64_t share(std::uint64_t limit, int blocks) { return (limit + 1024) / blocks - 1024; }

inline Function function(const Formula& formula) {
  return {formula.row, {float(formula.parameters[0]), float(formula.parameters[1])}};
}

// Offsets handed out one after the other, in floats, 16 bytes aligned
struct Cursor {
  std::uint64_t at = 0;
  std::uint32_t take(std::uint64_t bytes) {
    const std::uint64_t from = at;
    at += (bytes + 15) / 16 * 4;
    return std::uint32_t(from);
  }
};

inline void place(Arguments& a, const Way& way, Precision precision, std::uint64_t limit) {
  Layout& to = a.layout;
  const std::uint64_t T = way.samples, operand = operand_bytes(precision);
  Cursor cursor;
  std::uint64_t widest = 0, gradient_floats = 0;
  for (int l = 0; l < a.L; ++l) {
    LayerArguments& layer = a.layer[l];
    const std::uint64_t out = layer.padded_out, size = T * out * 4;
    layer.z = cursor.take(size);
    layer.tangent = a.P || a.gradients ? cursor.take(size) : 0;
    layer.q = a.gradients ? cursor.take(size) : 0;
    widest = widest < out ? out : widest;
    layer.gradient = std::uint32_t(gradient_floats);
    layer.bias_gradient = std::uint32_t(gradient_floats += out * layer.padded_in);
    gradient_floats += out;
  }
  const bool pulled = a.from != From::kDirections;
  const std::uint64_t drawn = a.from == From::kCotangents ? to.outputs : to.inputs;
  to.samples = way.samples;
  to.x = cursor.take(T * to.inputs * operand);
  to.v = a.P ? cursor.take(T * drawn * 4) : 0;
  to.v_operand = a.P ? cursor.take(T * to.inputs * operand) : 0;
  const std::uint64_t product = T * 4 * (widest < std::uint64_t(to.inputs) ? to.inputs : widest);
  if (operand == 4) {  // a product becomes an operand where it is
    to.operand[0] = to.operand[2] = cursor.take(product);
    to.operand[1] = a.gradients || pulled ? cursor.take(product) : 0;
  } else {
    to.product = cursor.take(product);
    const int operands = a.gradients ? 3 : pulled ? 2 : 1;
    for (int i = 0; i < operands; ++i) to.operand[i] = cursor.take(T * widest * operand);
  }
  if (a.P && a.gradients && a.from == From::kOutputs) {
    // where an operand lies that is through with: the last δ, or one that the way back has not begun with
    const std::uint64_t adjoint = T * to.inputs * 4;
    const bool fits = adjoint <= T * widest * operand;
    to.adjoint = operand == 4 ? to.operand[1 - a.L % 2] : fits ? to.operand[2] : cursor.take(adjoint);
  }
  to.rho_columns = 1 + (a.from == From::kCotangents && to.inputs > to.outputs ? to.inputs : to.outputs);
  to.rho = cursor.take(T * to.rho_columns * 4);
  to.seed = cursor.take(4 * sizeof(std::uint32_t));
  to.sums = cursor.take(kSumsBytes);
  to.gradient_floats = a.gradients ? std::uint32_t(gradient_floats) : 0;
  to.slot_floats = to.gradient_floats + kSumsBytes / 4;
  to.gradients = way.gradients && a.gradients ? cursor.take(gradient_floats * 4) : kAbsent;
  to.packed = way.parameters ? cursor.take(to.packed_bytes) : kAbsent;
  to.jacobian = kAbsent;
  // odd: the numbers of one sample that are read side by side are written apart
  to.jacobian_columns = std::int32_t(T * a.O | 1);
  const bool again = a.P > 1 && a.from != From::kCotangents && a.target[1].kind == TargetKind::kDense;
  const std::uint64_t jacobian = std::uint64_t(a.W) * to.jacobian_columns * 4;
  if (again && cursor.at * 4 + jacobian + 16 <= limit) to.jacobian = cursor.take(jacobian);
  to.floats = std::uint32_t(cursor.at);
}

// Whether the kernel draws these itself, or is given them.
inline bool draws(Distribution distribution) {
  switch (distribution) {
    case Distribution::kSphere:
    case Distribution::kNormal:
    case Distribution::kRademacher:
    case Distribution::kCoordinate:
    case Distribution::kBasis:
    case Distribution::kGiven:
      return true;
    default:
      return false;
  }
}

// The arguments of a step but for where a block's arrays lie.
inline Arguments numbers_of(const Step& step, Precision precision) {
  Arguments a{};
  a.N = step.N, a.D = std::int32_t(step.D), a.O = std::int32_t(step.O), a.W = std::int32_t(step.W);
  a.P = std::int32_t(step.P), a.L = std::int32_t(step.L);
  a.from = step.projection == Projection::kCotangents ? From::kCotangents
           : step.side == Side::kGradients            ? From::kOutputs
                                                      : From::kDirections;
  a.gradients = step.gradients;
  a.x = step.x, a.sample_weight = step.sample_weight, a.output_weight = step.output_weight;
  a.derivative_weight = step.derivative_weight;
  a.directions = step.directions;
  a.per_sample = step.per_sample;
  a.total = static_cast<float*>(step.total), a.terms = static_cast<float*>(step.terms);
  a.dx = static_cast<float*>(step.dx), a.dgiven = static_cast<float*>(step.dgiven);
  if (a.L > kMostLayers) throw std::invalid_argument(std::to_string(a.L) + " linear layers are more than 16");
  if (!draws(step.directions.distribution)) throw std::invalid_argument("a distribution that the kernel does not draw");
  for (int term = 0; term < 2; ++term) {
    if (step.loss[term].row >= kCountOfLoss) throw std::invalid_argument("a loss that couples a sample's numbers");
  }
  double common = 0;
  for (int term = 0; term < 2; ++term) {
    a.target[term] = step.target[term];
    a.loss[term] = function(step.loss[term]);
    a.weight[term] = step.weight[term], a.share[term] = step.share[term];
    const double factor = step.weight[term] * step.share[term];
    common = common < factor ? factor : common;
  }
  if (common == 0) common = 1;
  for (int term = 0; term < 2; ++term) a.factor[term] = float(step.weight[term] * step.share[term] / common);
  a.common = float(common);
  if (a.target[1].kind == TargetKind::kNone) a.P = 0;
  a.rounds = a.P && a.from == From::kOutputs ? a.O : a.P;
  a.layout.inputs = padded(step.D), a.layout.outputs = padded(step.O);
  for (int l = 0; l < a.L; ++l) {
    const Layer& from = step.layers[l];
    LayerArguments& to = a.layer[l];
    to.in = std::int32_t(from.n_in), to.out = std::int32_t(from.n_out);
    to.padded_in = padded(from.n_in), to.padded_out = padded(from.n_out);
    to.activation = function(from.activation), to.weight = from.weight, to.bias = from.bias;
    to.dweight = static_cast<float*>(from.dweight), to.dbias = static_cast<float*>(from.dbias);
    const std::uint32_t bytes = std::uint32_t(to.padded_in * to.padded_out * operand_bytes(precision));
    to.forward = a.layout.packed_bytes;
    to.backward = to.forward + bytes;
    to.bias_at = to.backward + bytes;
    a.layout.packed_bytes = to.bias_at + to.padded_out * 4;
  }
  return a;
}

// The same, of a block that may have `limit` bytes of shared memory.
inline Arguments prepare(const Step& step, Precision precision, std::uint64_t limit) {
  Arguments a = numbers_of(step, precision);
  for (const Way& way : kWays) {
    if (way.blocks > blocks_at_most(precision)) continue;
    place(a, way, precision, share(limit, way.blocks));
    if (a.layout.floats * std::uint64_t(4) > share(limit, way.blocks)) continue;
    a.tiles = (a.N + way.samples - 1) / way.samples;
    return a;
  }
  throw std::invalid_argument("16 samples of this student take " + std::to_string(a.layout.floats * std::uint64_t(4)) +
                              " bytes of shared memory, a block has " + std::to_string(limit));
}

// The scratch of a step, which the caller allocates: packed parameters, then a slot of gradients and sums for each
// block
inline std::uint64_t scratch_bytes(const Arguments& a, int blocks) {
  return a.layout.packed_bytes + std::uint64_t(blocks) * a.layout.slot_floats * 4;
}

inline void give_scratch(Arguments& a, void* scratch, int blocks) {
  a.blocks = blocks;
  a.packed = static_cast<unsigned char*>(scratch);
  a.slots = reinterpret_cast<float*>(a.packed + a.layout.packed_bytes);
}

// Blocks of the kernels around the step: a row for each layer
struct Grid {
  int columns, rows;
};

inline std::int64_t most_numbers(const Arguments& a) {
  std::int64_t most = 0;
  for (int l = 0; l < a.L; ++l) {
    const std::int64_t numbers = std::int64_t(a.layer[l].padded_in + 1) * a.layer[l].padded_out;
    most = most < numbers ? numbers : most;
  }
  return most;
}

inline Grid grid_of_pack(const Arguments& a) { return {int((most_numbers(a) + kThreads - 1) / kThreads), a.L}; }

// Whether the blocks have left something: gradients, and terms of a batch, which have a row of their own
inline bool finishes(const Arguments& a) { return a.gradients || (a.total && !a.per_sample); }
inline Grid grid_of_finish(const Arguments& a) {
  return a.gradients ? Grid{int((most_numbers(a) + kFinished - 1) / kFinished), a.L + 1} : Grid{1, 1};
}

}  // namespace sk::cuda
