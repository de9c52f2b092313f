// What one instruction set exports: the phases of its work, for any thread's part of it. No threads in here.
#pragma once

#include <cstddef>

#include "../activated.h"
#include "../attention.h"
#include "../chain.h"
#include "../convolved.h"
#include "../jets.h"
#include "../normed.h"
#include "../params.h"
#include "../recurrent.h"

namespace sk {

// The phases of a step, of named derivatives, of a convolution, or of a pass of a chain or of a recurrent layer
template <class Work>
struct Phases {
  std::size_t (*shared_bytes)(const Work&);
  std::size_t (*private_bytes)(const Work&);
  // weights into the shared room
  void (*pack)(const Work&, void* shared, int part, int parts);
  // the part's tiles; `workspace` is the part's alone
  void (*tiles)(const Work&, void* shared, void* workspace, int part, int parts);
  // the private gradients and losses of all parts, added in their order, into the outputs
  void (*reduce)(const Work&, void* workspace, std::size_t workspace_bytes, int part, int parts);
};

struct Kernels {
  const char* name;
  int vector_bytes;
  Phases<Step> step;
  Phases<Jets> jets;
  Phases<Chain> chain;
  Phases<Recurrent> recurrent;
  Phases<Convolved> convolved;
  // numbers that its passes keep
  ChainSizes (*chain_sizes)(const Chain&);
  // a part of the numbers
  void (*activated)(const Activated&, int part, int parts);
  // a part of the rows; adjoints of weight and bias are added to sums [2, weights]
  void (*normed)(const Normed&, double* sums, int part, int parts);
  // a part of the sequences
  void (*attention)(const Attention&, int part, int parts);
  // directions [P, N, D] as a tensor, from `step.directions`
  void (*draw)(const Step&, void* room, void* out, int part, int parts);
};

}  // namespace sk
