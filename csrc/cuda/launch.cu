#include "launch.h"

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "finish.cuh"
#include "tell.cuh"

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

RegisterKernel kernel_of(Precision precision, RegisterWay way) {
  using Choice = RegisterKernel (*)(RegisterWay);
  constexpr Choice kOf[] = {ieee_in_registers, tf32_in_registers, bf16_in_registers, fp16_in_registers};
  return kOf[int(precision)](way);
}

// What is not allowed while a stream is captured, though it has nothing to do with one, is allowed within this
class Uncaptured {
 public:
  Uncaptured() { SK_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~Uncaptured() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Once for a device: a way's kernels are loaded, which the first launch would do else, in the middle of a capture
// maybe; and their blocks may have all shared memory that there is, so that no thread sets it to less than another's
// launch takes.
RegisterKernel ready_kernel(int device, Precision precision, RegisterWay way) {
  static std::mutex mutex;
  static std::set<std::pair<int, RegisterKernel>> ready;
  const RegisterKernel step = kernel_of(precision, way);
  const std::lock_guard<std::mutex> lock(mutex);
  if (ready.count({device, step})) return step;
  const Uncaptured uncaptured;
  cudaFuncAttributes attributes;
  SK_CHECK(cudaFuncGetAttributes(&attributes, tell_layers));
  SK_CHECK(cudaFuncGetAttributes(&attributes, finish_step));
  SK_CHECK(cudaFuncGetAttributes(&attributes, step));
  int most = 0;
  SK_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int dynamic = most - int(attributes.sharedSizeBytes);
  SK_CHECK(cudaFuncSetAttribute(step, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  ready.insert({device, step});
  return step;
}

}  // namespace

int count_devices() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) cudaGetLastError();
  return devices;
}

int blocks_of_a_multiprocessor(int device, Precision precision, RegisterWay way, std::uint64_t shared_bytes) {
  const OnDevice on(device);
  const RegisterKernel step = ready_kernel(device, precision, way);
  int blocks = 0;
  SK_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, step, kThreads, shared_bytes));
  return blocks;
}

void launch(const Prepared& prepared, Precision precision, int device, std::uintptr_t stream) {
  const RegisterArguments& all = prepared.all;
  const Arguments& arguments = all.step;
  if (arguments.blocks < 1) return;
  const OnDevice on(device);
  const RegisterKernel step = ready_kernel(device, precision, all.own.way);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  for (const ToldLayers& some : told(arguments, prepared.layers)) {
    tell_layers<<<1, kThreads, 0, queue>>>(some);
    check(cudaGetLastError(), "launch of tell_layers");
  }
  step<<<arguments.blocks, kThreads, arguments.layout.shared_bytes, queue>>>(all);
  check(cudaGetLastError(), "launch of register_step");
  if (!finishes(arguments)) return;
  const Grid grid = grid_of_finish(arguments, prepared.layers);
  finish_step<<<dim3(grid.columns, grid.rows), kThreads, 0, queue>>>(arguments);
  check(cudaGetLastError(), "launch of finish_step");
}

}  // namespace sk::cuda
