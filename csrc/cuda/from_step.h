// From a step to the numbers of the kernels' arguments, wherever a block has its arrays.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"

namespace sk::cuda {

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

// The arguments of a step but for its layers and for where a block's arrays lie.
inline Arguments numbers_of(const Step& step) {
  Arguments a{};
  a.N = step.N, a.D = std::int32_t(step.D), a.O = std::int32_t(step.O), a.W = std::int32_t(step.W);
  a.P = std::int32_t(step.P), a.L = std::int32_t(step.L);
  a.from = step.projection == Projection::kCotangents ? From::kCotangents
           : step.side == Side::kGradients            ? From::kOutputs
                                                      : From::kDirections;
  a.gradients = step.gradients, a.order = step.order;
  a.x = step.x, a.sample_weight = step.sample_weight, a.output_weight = step.output_weight;
  a.derivative_weight = step.derivative_weight;
  a.directions = step.directions;
  a.per_sample = step.per_sample;
  a.total = static_cast<float*>(step.total), a.terms = static_cast<float*>(step.terms);
  a.dx = static_cast<float*>(step.dx), a.dgiven = static_cast<float*>(step.dgiven);
  if (!draws(step.directions.distribution)) throw std::invalid_argument("a distribution that the kernel does not draw");
  for (int term = 0; term < step.count_terms(); ++term) {
    if (step.loss[term].row >= kCountOfLoss + kCountOfCoupled) throw std::invalid_argument("a loss of a head");
  }
  double common = 0;
  for (int term = 0; term < step.count_terms(); ++term) {
    a.target[term] = step.target[term];
    a.loss[term] = function(step.loss[term]);
    a.weight[term] = step.weight[term], a.share[term] = step.share[term];
    const double factor = step.weight[term] * step.share[term];
    common = common < factor ? factor : common;
  }
  if (common == 0) common = 1;
  for (int term = 0; term < kMaxTerms; ++term) a.factor[term] = float(step.weight[term] * step.share[term] / common);
  a.common = float(common);
  if (a.target[1].kind == TargetKind::kNone && a.target[2].kind == TargetKind::kNone) a.P = 0;
  a.rounds = a.P && a.from == From::kOutputs ? a.O : a.P;
  return a;
}

inline std::vector<ToldLayer> layers_of(const Step& step) {
  std::vector<ToldLayer> layers(step.L);
  for (std::int64_t l = 0; l < step.L; ++l) {
    const Layer& from = step.layers[l];
    LayerArguments& to = layers[l].layer;
    to.in = std::int32_t(from.n_in), to.out = std::int32_t(from.n_out);
    to.activation = function(from.activation), to.weight = from.weight, to.bias = from.bias;
    to.dweight = static_cast<float*>(from.dweight), to.dbias = static_cast<float*>(from.dbias);
    layers[l].curve = curve_of(to.activation.row, to.activation.parameters);
  }
  return layers;
}

// What each launch of tell_layers is told
inline std::vector<ToldLayers> told(const Arguments& a, const std::vector<ToldLayer>& layers) {
  std::vector<ToldLayers> all;
  for (std::size_t from = 0; a.table && from < layers.size(); from += kToldAtOnce) {
    ToldLayers& some = all.emplace_back();
    some.to = const_cast<ToldLayer*>(a.table) + from;
    some.count = std::int32_t(std::min<std::size_t>(kToldAtOnce, layers.size() - from));
    std::copy_n(layers.begin() + from, some.count, some.layer);
  }
  return all;
}

// Blocks of finish_step: a row for each layer, and one for the loss
struct Grid {
  int columns, rows;
};

inline std::int64_t most_numbers(const std::vector<ToldLayer>& layers) {
  std::int64_t most = 0;
  for (const auto& of : layers) {
    most = std::max(most, std::int64_t(of.layer.padded_in + 1) * of.layer.padded_out);
  }
  return most;
}

// Whether the blocks have left something: gradients, or terms of a batch
inline bool finishes(const Arguments& a) { return a.gradients || (a.total && !a.per_sample); }
inline Grid grid_of_finish(const Arguments& a, const std::vector<ToldLayer>& layers) {
  return a.gradients ? Grid{int((most_numbers(layers) + kFinished - 1) / kFinished), a.L + 1} : Grid{1, 1};
}

}  // namespace sk::cuda
