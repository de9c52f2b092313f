// What the kernels are told of one step: plain numbers and addresses, prepared on the host and passed by value.
// No CUDA here: the tests prepare the same arguments for kernels that are executed without a GPU.
#pragma once

#include <cstdint>

#include "../params.h"

namespace sk::cuda {

using sk::Precision;  // kIeee multiplies float32 without tensor cores

constexpr int kMostLayers = 16, kThreads = 256;
constexpr int kFinished = 128;  // numbers of a block of finish_step: a fragment of a gradient
constexpr int kSums = 2;        // of a term, by the warps that have its samples
constexpr std::uint32_t kSumsBytes = 2 * kSums * sizeof(double);
constexpr std::uint32_t kAbsent = ~0u;

inline constexpr int operand_bytes(Precision precision) { return precision < Precision::kBf16 ? 4 : 2; }

// Blocks of a multiprocessor, as far as registers go: float32 fragments take more
inline constexpr int blocks_at_most(Precision precision) { return precision == Precision::kIeee ? 1 : 2; }

// Where the chains of derivatives begin: at P directions, at P cotangents, or at each of the O outputs, whose gradient
// is projected on P directions
enum class From : int { kDirections, kCotangents, kOutputs };

struct Function {
  std::int32_t row;
  float parameters[2];
};

// A linear layer: its features, padded to whole fragments, and where its numbers are. Counts of 4-byte floats from the
// beginning of the block's shared memory, unless it says otherwise.
struct LayerArguments {
  std::int32_t in, out;                // as the student has them
  std::int32_t padded_in, padded_out;  // multiples of 16
  Function activation;
  Strided weight, bias;
  float *dweight, *dbias;
  std::uint32_t z, tangent, q;               // [samples, padded_out]
  std::uint32_t gradient, bias_gradient;     // from the beginning of the gradients
  std::uint32_t forward, backward, bias_at;  // bytes from the beginning of the packed parameters
};

// Where a block's arrays lie in its shared memory (floats from its beginning) and how it goes about a tile.
struct Layout {
  std::int32_t samples = 0;
  std::int32_t inputs = 0, outputs = 0;       // D and O, padded
  std::uint32_t x = 0, v = 0, v_operand = 0;  // a tile's inputs as an operand; a direction, and as an operand
  std::uint32_t adjoint = 0;                  // [samples, inputs], of an output's gradient
  std::uint32_t product = 0;                  // [samples, widest]
  std::uint32_t operand[3] = {0, 0, 0};       // [samples, widest layer]
  std::uint32_t rho = 0;                      // [samples, rho_columns]
  std::int32_t rho_columns = 0;
  std::uint32_t jacobian = kAbsent;  // [D, jacobian_columns], if P directions read it
  std::int32_t jacobian_columns = 0;
  std::uint32_t seed = 0;             // key, offset and first sample
  std::uint32_t sums = 0;             // [2, kSums] doubles: of the block's samples, of each term
  std::uint32_t gradients = kAbsent;  // else in the block's slot in global memory
  std::uint32_t packed = kAbsent;     // else they are read where they were packed
  std::uint32_t floats = 0;           // of it all
  std::uint32_t gradient_floats = 0;  // of a block
  std::uint32_t slot_floats = 0;      // of its slot: gradients, then sums
  std::uint32_t packed_bytes = 0;     // of all weights, for both ways
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
  Target target[2];
  Function loss[2];
  float factor[2];             // of slopes, the largest 1
  float common;                // of all gradients: adjoints are of the size of residuals, float16 has no room for less
  double weight[2], share[2];  // of a term in the loss; of a sum of residuals in its term
  bool per_sample;
  float* total;   // the loss, [1], or [N] if per_sample
  float* terms;   // [2], or [2, N] if per_sample
  float* dx;      // [N, D]
  float* dgiven;  // [P, N, W], or [P, N, O] of cotangents; not from kOutputs
  unsigned char* packed;
  float* slots;  // [blocks, slot_floats]
  std::int32_t blocks;
};

}  // namespace sk::cuda
