// The kernels of one precision each, for the launcher and for the tests.
#include "kernels.cuh"

namespace sk::cuda {

#define SK_KERNELS(precision)                                                                     \
  template __global__ void pack_weights<Precision::precision>(const __grid_constant__ Arguments); \
  template __global__ void sobolev_step<Precision::precision>(const __grid_constant__ Arguments);
SK_KERNELS(kIeee)
SK_KERNELS(kTf32)
SK_KERNELS(kBf16)
SK_KERNELS(kFp16)
#undef SK_KERNELS

}  // namespace sk::cuda
