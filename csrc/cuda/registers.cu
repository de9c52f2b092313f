// One kernel of registers.cuh by itself: for the tests and the report.
#include "finish.cuh"
#include "registers.cuh"
#include "tell.cuh"

#ifndef SK_WIDE
#define SK_WIDE false
#endif
#ifndef SK_ORDER
#define SK_ORDER 1
#endif

namespace sk::cuda {

template __global__ void register_step<Precision::SK_PRECISION, SK_WIDTH, SK_GROUPS, SK_BETWEEN, SK_BLOCKS, SK_WIDE,
                                       SK_ORDER>(const __grid_constant__ RegisterArguments);

}  // namespace sk::cuda
