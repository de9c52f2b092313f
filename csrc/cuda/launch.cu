#include "launch.h"

#include <stdexcept>
#include <string>

#include "kernels.cuh"

namespace sk::cuda {
namespace {

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that is told is not to be found again by the next call
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(error));
}
#define SK_CHECK(call) check(call, #call)

// The device of a call, and the caller's again after it
class OnDevice {
 public:
  explicit OnDevice(int device) {
    SK_CHECK(cudaGetDevice(&before_));
    if (device != before_) SK_CHECK(cudaSetDevice(device));
  }
  ~OnDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

using Kernel = void (*)(Arguments);
struct Kernels {
  Kernel pack, step;
};

Kernels kernels_of(Precision precision) {
  switch (precision) {
    case Precision::kIeee:
      return {pack_parameters<Precision::kIeee>, sobolev_step<Precision::kIeee>};
    case Precision::kTf32:
      return {pack_parameters<Precision::kTf32>, sobolev_step<Precision::kTf32>};
    case Precision::kBf16:
      return {pack_parameters<Precision::kBf16>, sobolev_step<Precision::kBf16>};
    case Precision::kFp16:
      return {pack_parameters<Precision::kFp16>, sobolev_step<Precision::kFp16>};
  }
  throw std::invalid_argument("no such precision");
}

void allow_shared(Kernel kernel, std::uint64_t bytes) {
  SK_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

// One row of blocks for each layer
dim3 over_layers(const Arguments& a) {
  int most = 0;
  for (int l = 0; l < a.L; ++l) {
    const int size = a.layer[l].padded_in * a.layer[l].padded_out;
    most = most < size ? size : most;
  }
  return dim3((most + kThreads - 1) / kThreads, a.L);
}

}  // namespace

int count_devices() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) cudaGetLastError();
  return devices;
}

int blocks_of_a_multiprocessor(int device, Precision precision, std::uint64_t shared_bytes) {
  const OnDevice on(device);
  const Kernel step = kernels_of(precision).step;
  allow_shared(step, shared_bytes);
  int blocks = 0;
  SK_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, step, kThreads, shared_bytes));
  return blocks;
}

void launch(const Arguments& arguments, Precision precision, int device, std::uintptr_t stream) {
  if (arguments.blocks < 1) return;
  const OnDevice on(device);
  const Kernels kernels = kernels_of(precision);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  const std::uint64_t shared = arguments.layout.floats * std::uint64_t(4);
  kernels.pack<<<over_layers(arguments), kThreads, 0, queue>>>(arguments);
  check(cudaGetLastError(), "launch of pack_parameters");
  allow_shared(kernels.step, shared);
  kernels.step<<<arguments.blocks, kThreads, shared, queue>>>(arguments);
  check(cudaGetLastError(), "launch of sobolev_step");
  if (!arguments.gradients) return;
  sum_gradients<<<over_layers(arguments), kThreads, 0, queue>>>(arguments);
  check(cudaGetLastError(), "launch of sum_gradients");
}

}  // namespace sk::cuda
