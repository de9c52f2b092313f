// One kernel of registers.cuh by itself: for the tests and the report.
#include "finish.cuh"
#include "registers.cuh"
#include "tell.cuh"

#ifndef SK_WIDE
#define SK_WIDE false
#endif

namespace sk::cuda {

template __global__ void register_step<Precision::SK_PRECISION, SK_WIDTH, SK_GROUPS, SK_BETWEEN, SK_BLOCKS, SK_WIDE>(
    const __grid_constant__ RegisterArguments);

}  // namespace sk::cuda
