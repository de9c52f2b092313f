// What one instruction set exports: the phases of a step, for any thread's part of it. No threads in here.
#pragma once

#include <cstddef>

#include "../params.h"

namespace sk {

struct Kernels {
  const char* name;
  int vector_bytes;
  std::size_t (*shared_bytes)(const Step&);
  std::size_t (*private_bytes)(const Step&);
  // weights into the shared room
  void (*pack)(const Step&, void* shared, int part, int parts);
  // the part's tiles; `workspace` is the part's alone
  void (*tiles)(const Step&, void* shared, void* workspace, int part, int parts);
  // the private gradients and losses of all parts, added in their order, into the outputs
  void (*reduce)(const Step&, void* workspace, std::size_t workspace_bytes, int part, int parts);
  // directions [P, N, D] as a tensor, from `step.directions`
  void (*draw)(const Step&, void* room, void* out, int part, int parts);
};

}  // namespace sk
