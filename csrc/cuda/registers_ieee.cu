#include <stdexcept>

#include "launch.h"
#include "registers.cuh"

namespace sk::cuda {

RegisterKernel ieee_in_registers(RegisterWay way) {
#define SK_CASE(...) \
  if (way == RegisterWay{__VA_ARGS__}) return register_step<Precision::kIeee, __VA_ARGS__>;
  SK_FLOAT_WAYS(SK_CASE)
#undef SK_CASE
  throw std::invalid_argument("no such way of a block");
}

}  // namespace sk::cuda
