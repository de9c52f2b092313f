// A Sobolev step whose streams live in registers (docs/math.md, sections 3, 4 and 10). A warp owns 16 samples of a
// tile, or shares their columns with others: the sums of a layer's product, after the activation, are operands of the
// next one. What weight gradients are made of, values, tangents and adjoints, lies in shared memory as 16-bit numbers;
// the block brings them together after each round, in sums that stay in registers to its end.
#pragma once

#include "registers/second.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H, int kGroups, int kBetween, int kBlocks, bool kWide, int kOrder = 1>
__global__ void __launch_bounds__(kThreads, kBlocks) register_step(const __grid_constant__ RegisterArguments all) {
  extern __shared__ __align__(1024) unsigned char register_shared[];
  constexpr Room kRoom = kOrder == 2     ? Room::kSecond
                         : kBetween == 0 ? Room::kSlot
                         : kWide         ? Room::kPieces
                                         : Room::kPlain;
  using Step = std::conditional_t<kOrder == 2, RegisterSecond<kPrecision, H, kGroups, kBetween, kRoom>,
                                  RegisterStep<kPrecision, H, kGroups, kBetween, kRoom>>;
  Step step{all, register_shared};
  step.begin();
  if constexpr (kBlocks == 1) {  // a tile's number would live through all of it beside its first row
    for (step.go_to(blockIdx.x); step.tile() < all.step.tiles; step.go_to(step.tile() + gridDim.x)) step.run();
  } else {  // where two blocks share the registers that costs more: 172 bytes of spills, 12 so
    for (std::int64_t i = blockIdx.x; i < all.step.tiles; i += gridDim.x) {
      step.go_to(i);
      step.run();
    }
  }
  step.end();
}

}  // namespace sk::cuda
