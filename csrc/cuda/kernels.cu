// The kernels of one precision, SK_PRECISION, by themselves: for the tests and the report.
#include "kernels.cuh"

namespace sk::cuda {

template __global__ void pack_parameters<Precision::SK_PRECISION>(const __grid_constant__ Arguments);
template __global__ void sobolev_step<Precision::SK_PRECISION>(const __grid_constant__ Arguments);

}  // namespace sk::cuda
