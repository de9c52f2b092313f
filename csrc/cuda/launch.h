// The host's side of the kernels. Errors of the CUDA runtime are exceptions that name the call.
#pragma once

#include <cstdint>

#include "registers.h"

namespace sk::cuda {

// The kernel of a way, of translation units of their own, which are compiled side by side
using RegisterKernel = void (*)(RegisterArguments);
RegisterKernel bf16_in_registers(RegisterWay way);
RegisterKernel fp16_in_registers(RegisterWay way);
RegisterKernel tf32_in_registers(RegisterWay way);
RegisterKernel ieee_in_registers(RegisterWay way);

// 0 without a driver too
int count_devices();

// Blocks of the step that a multiprocessor of the device holds at a time
int blocks_of_a_multiprocessor(int device, Precision precision, RegisterWay way, std::uint64_t shared_bytes);

// The table of layers if there is one, step and finish, on a stream of the device; nothing is allocated or waited for,
// so a graph can capture it.
void launch(const Prepared& prepared, Precision precision, int device, std::uintptr_t stream);

}  // namespace sk::cuda
