#include "launch.h"

#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.cuh"
#include "registers.h"

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

// Of a step: one of both kinds of `step`, and what packs its parameters if it wants them packed
struct Kernels {
  Kernel pack = nullptr, step = nullptr;
  RegisterKernel in_registers = nullptr;

  const void* main() const {
    return in_registers ? reinterpret_cast<const void*>(in_registers) : reinterpret_cast<const void*>(step);
  }
};

Kernels kernels_of(Precision precision, RegisterWay way) {
  if (way.width) {
    using Choice = RegisterKernel (*)(RegisterWay);
    constexpr Choice kOf[] = {ieee_in_registers, tf32_in_registers, bf16_in_registers, fp16_in_registers};
    return {nullptr, nullptr, kOf[int(precision)](way)};
  }
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

// What is not allowed while a stream is captured, though it has nothing to do with one, is allowed within this
class Uncaptured {
 public:
  Uncaptured() { SK_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~Uncaptured() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Once for a device: a precision's kernels are loaded, which the first launch would do else, in the middle of a capture
// maybe; and their blocks may have all shared memory that there is, so that no thread sets it to less than another's
// launch takes.
Kernels ready_kernels(int device, Precision precision, RegisterWay way) {
  static std::mutex mutex;
  static std::set<std::pair<int, const void*>> ready;
  const Kernels kernels = kernels_of(precision, way);
  const std::lock_guard<std::mutex> lock(mutex);
  if (ready.count({device, kernels.main()})) return kernels;
  const Uncaptured uncaptured;
  cudaFuncAttributes attributes;
  if (kernels.pack) SK_CHECK(cudaFuncGetAttributes(&attributes, kernels.pack));
  SK_CHECK(cudaFuncGetAttributes(&attributes, finish_step));
  SK_CHECK(cudaFuncGetAttributes(&attributes, kernels.main()));
  int most = 0;
  SK_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int dynamic = most - int(attributes.sharedSizeBytes);
  SK_CHECK(cudaFuncSetAttribute(kernels.main(), cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  ready.insert({device, kernels.main()});
  return kernels;
}

}  // namespace

int count_devices() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) cudaGetLastError();
  return devices;
}

int blocks_of_a_multiprocessor(int device, Precision precision, RegisterWay way, std::uint64_t shared_bytes) {
  const OnDevice on(device);
  const void* step = ready_kernels(device, precision, way).main();
  int blocks = 0;
  SK_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, step, kThreads, shared_bytes));
  return blocks;
}

void launch(const RegisterArguments& all, Precision precision, int device, std::uintptr_t stream) {
  const Arguments& arguments = all.step;
  if (arguments.blocks < 1) return;
  const OnDevice on(device);
  const Kernels kernels = ready_kernels(device, precision, all.own.way);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  const std::uint64_t shared = arguments.layout.floats * std::uint64_t(4);
  const auto grid = [](const Grid& of) { return dim3(of.columns, of.rows); };
  if (kernels.in_registers) {
    kernels.in_registers<<<arguments.blocks, kThreads, shared, queue>>>(all);
    check(cudaGetLastError(), "launch of register_step");
  } else {
    kernels.pack<<<grid(grid_of_pack(arguments)), kThreads, 0, queue>>>(arguments);
    check(cudaGetLastError(), "launch of pack_parameters");
    kernels.step<<<arguments.blocks, kThreads, shared, queue>>>(arguments);
    check(cudaGetLastError(), "launch of sobolev_step");
  }
  if (!finishes(arguments)) return;
  finish_step<<<grid(grid_of_finish(arguments)), kThreads, 0, queue>>>(arguments);
  check(cudaGetLastError(), "launch of finish_step");
}

}  // namespace sk::cuda
