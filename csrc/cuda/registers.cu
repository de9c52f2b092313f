// One kernel of registers.cuh by itself: for the tests and the report.
#include "finish.cuh"
#include "registers.cuh"

namespace sk::cuda {

template __global__ void register_step<Precision::SK_PRECISION, SK_WIDTH, SK_GROUPS, SK_BETWEEN, SK_BLOCKS>(
    const __grid_constant__ RegisterArguments);

}  // namespace sk::cuda
