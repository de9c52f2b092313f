// The three kernels of a step: parameters packed, tiles computed, gradients summed.
#pragma once

#include "step.cuh"

namespace sk::cuda {

// Each weight into the order in which the lanes of a product read it, for both ways, padded with zeros
template <Precision kPrecision>
__global__ void pack_parameters(const __grid_constant__ Arguments a) {
  using Op = Operand<kPrecision>;
  const LayerArguments& layer = a.layer[blockIdx.y];
  const int size = layer.padded_in * layer.padded_out;
  for (int e = blockIdx.x * blockDim.x + threadIdx.x; e < 2 * size; e += gridDim.x * blockDim.x) {
    const bool backward = e >= size;
    const int blocks = (backward ? layer.padded_out : layer.padded_in) / Op::kDepth;
    const int block = e % size / (16 * Op::kDepth);
    int k, n;
    Op::place_of(e % (16 * Op::kDepth), k, n);
    k += block % blocks * Op::kDepth, n += block / blocks * 16;
    const int row = backward ? k : n, column = backward ? n : k;
    const bool inside = row < layer.out && column < layer.in;
    const float weight = inside ? number(layer.weight, row, column) : 0.0f;
    reinterpret_cast<typename Op::Type*>(a.packed + layer.forward)[e] = Op::of(weight);
  }
  float* bias = reinterpret_cast<float*>(a.packed + layer.bias_at);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < layer.padded_out; i += gridDim.x * blockDim.x) {
    bias[i] = layer.bias.data && i < layer.out ? number(layer.bias, i) : 0.0f;
  }
}

template <Precision kPrecision>
__global__ void __launch_bounds__(kThreads, blocks_at_most(kPrecision))
    sobolev_step(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  Tile<kPrecision> tile{a, shared};
  tile.begin();
  for (std::int64_t i = blockIdx.x; i < a.tiles; i += gridDim.x) tile.run(i * a.layout.samples);
  tile.end();
}

// The sum over the blocks' slots, in their order
static __global__ void sum_gradients(const __grid_constant__ Arguments a) {
  const LayerArguments& layer = a.layer[blockIdx.y];
  const int size = layer.padded_in * layer.padded_out;
  for (int e = blockIdx.x * blockDim.x + threadIdx.x; e < size + layer.padded_out; e += gridDim.x * blockDim.x) {
    int row = e - size, column = 0;
    if (e < size) place_in_gradient(e, layer.padded_in, row, column);
    float* to = e < size ? layer.dweight : layer.dbias;
    if (!to || row >= layer.out || column >= layer.in) continue;
    const float* from = a.slots + layer.gradient + e;
    float total = 0.0f;
    for (int block = 0; block < a.blocks; ++block, from += a.layout.gradient_floats) total += *from;
    to[e < size ? std::int64_t(row) * layer.in + column : row] = a.common * total;
  }
}

}  // namespace sk::cuda
