// What the kernels are told of one step: plain numbers and addresses, prepared on the host and passed by value.
// No CUDA here: the tests prepare the same arguments for kernels that are executed without a GPU.
#pragma once

#include <cstdint>

#include "../math/curves.h"
#include "../params.h"

namespace sk::cuda {

using sk::Precision;

constexpr int kMostLayers = 6, kThreads = 256;  // told with a launch; of a roomy way they are in a table
constexpr int kFinished = 128;                  // numbers of a block of finish_step: a fragment of a gradient
constexpr int kSums = 2;                        // of a term, by the warps that have its samples
constexpr std::uint32_t kSumsBytes = kMaxTerms * kSums * sizeof(double);

inline constexpr int operand_bytes(Precision precision) { return precision < Precision::kBf16 ? 4 : 2; }

// Where the chains of derivatives begin: at P directions, at P cotangents, or at each of the O outputs, whose gradient
// is projected on P directions
enum class From : int { kDirections, kCotangents, kOutputs };

struct Function {
  std::int32_t row;
  float parameters[2];
};

// A linear layer: its features, padded to whole fragments, where its numbers are, and where a block's gradients of them
// lie in its slot, in floats from the beginning.
struct LayerArguments {
  std::int32_t in, out;                // as the student has them
  std::int32_t padded_in, padded_out;  // multiples of 16
  Function activation;
  Strided weight, bias;
  float *dweight, *dbias;
  std::uint32_t gradient, bias_gradient;
};

// A layer in the table, which lies at the beginning of the scratch, and what is known of its activation's derivatives
struct ToldLayer {
  LayerArguments layer;
  Curve curve;
};

// The table is written by launches of tell_layers, each of which is told as many layers as its 4 KiB have room for: a
// graph that captures them keeps what they are told.
constexpr int kToldAtOnce = (4096 - 16) / sizeof(ToldLayer);
struct ToldLayers {
  ToldLayer* to;
  std::int32_t count;
  ToldLayer layer[kToldAtOnce];
};
static_assert(sizeof(ToldLayers) <= 4096);

// What a block goes about, and what it leaves in its slot in global memory: gradients, sums, what it has no room for.
struct Layout {
  std::int32_t samples = 0;           // of a tile
  std::uint32_t shared_bytes = 0;     // of a block
  std::uint32_t gradient_floats = 0;  // of its slot
  std::uint32_t slot_floats = 0;
};

struct Arguments {
  std::int64_t N, tiles;
  std::int32_t D, O, W, P, L;
  From from;
  std::int32_t rounds;     // chains of derivatives
  std::int32_t gradients;  // wanted
  Layout layout;
  LayerArguments layer[kMostLayers];
  Strided x, sample_weight, output_weight, derivative_weight;
  Directions directions;
  Target target[kMaxTerms];
  Function loss[kMaxTerms];
  float factor[kMaxTerms];  // of slopes, the largest 1
  float common;             // of all gradients: adjoints are of the size of residuals, float16 has no room for less
  double weight[kMaxTerms], share[kMaxTerms];  // of a term in the loss; of a sum of residuals in its term
  bool per_sample;
  float* total;   // the loss, [1], or [N] if per_sample
  float* terms;   // [1 + order], or [1 + order, N] if per_sample
  float* dx;      // [N, D]
  float* dgiven;  // [P, N, W], or [P, N, O] of cotangents; not from kOutputs
  float* slots;   // [blocks, slot_floats]
  std::int32_t blocks, order;
  const ToldLayer* table;  // [L], or null: they are in `layer`
};

}  // namespace sk::cuda
