// Layers of a roomy way come to their table.
#pragma once

#include "arguments.h"

namespace sk::cuda {

static __global__ void __launch_bounds__(kThreads) tell_layers(const __grid_constant__ ToldLayers told) {
  static_assert(sizeof(ToldLayer) % 4 == 0);
  constexpr int kWords = sizeof(ToldLayer) / 4;
  for (int i = threadIdx.x; i < told.count * kWords; i += kThreads) {
    reinterpret_cast<std::uint32_t*>(told.to)[i] = reinterpret_cast<const std::uint32_t*>(told.layer)[i];
  }
}

}  // namespace sk::cuda
