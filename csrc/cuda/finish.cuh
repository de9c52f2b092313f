// The kernel after the step: what its blocks have left is brought together.
#pragma once

#include "primitives.cuh"

namespace sk::cuda {

// Where number e of a slot's gradient [m, n] lies in it: the sums of tensor cores in the order of lanes
SK_INLINE void place_in_gradient(int e, int n, int& row, int& column) {
  const int block = e / 128, lane = e / 4 % 32;
  row = block / (n / 8) * 16 + lane / 4 + e / 2 % 2 * 8;
  column = block % (n / 8) * 8 + lane % 4 * 2 + e % 2;
}

// Loss and terms of a batch, by one warp
SK_INLINE void finish_loss(const Arguments& a) {
  const int lane = threadIdx.x;
  double sum[kMaxTerms] = {};
  for (int block = lane; block < a.blocks; block += 32) {
    const float* slot = a.slots + std::int64_t(block) * a.layout.slot_floats + a.layout.gradient_floats;
    for (int i = 0; i < (1 + a.order) * kSums; ++i) sum[i / kSums] += reinterpret_cast<const double*>(slot)[i];
  }
  for (double& of : sum) {
    for (int apart = 16; apart; apart /= 2) of += __shfl_xor_sync(~0u, of, apart);
  }
  if (lane) return;
  double loss = 0.0;
  for (int term = 0; term <= a.order; ++term) {
    sum[term] *= a.share[term];
    if (a.terms) a.terms[term] = float(sum[term]);
    if (a.weight[term] != 0.0) loss += a.weight[term] * sum[term];  // else it may be NaN
  }
  *a.total = float(loss);
}

// The sums over the blocks' slots, in an order that is always the same: a warp takes every eighth slot, a lane four
// numbers of it. A row of blocks for each layer, the last one for the loss.
static __global__ void __launch_bounds__(kThreads) finish_step(const __grid_constant__ Arguments a) {
  if (blockIdx.y + 1 == gridDim.y) {
    if (blockIdx.x == 0 && threadIdx.x < 32 && a.total && !a.per_sample) finish_loss(a);
    return;
  }
  constexpr int kWarps = kThreads / 32;
  __shared__ float4 part[kWarps][32];
  const LayerArguments layer = a.table ? a.table[blockIdx.y].layer : a.layer[blockIdx.y];
  const int size = layer.padded_in * layer.padded_out, count = size + layer.padded_out;
  const int begin = blockIdx.x * kFinished, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (begin >= count) return;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (begin + 4 * lane < count) {
    const float* from = a.slots + layer.gradient + begin + 4 * lane;
#pragma unroll 4
    for (int block = warp; block < a.blocks; block += kWarps) {
      const float4 x = *reinterpret_cast<const float4*>(from + std::int64_t(block) * a.layout.slot_floats);
      sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
  }
  part[warp][lane] = sum;
  __syncthreads();
  const int e = begin + threadIdx.x;
  if (threadIdx.x >= kFinished || e >= count) return;
  int row = e - size, column = 0;
  if (e < size) place_in_gradient(e, layer.padded_in, row, column);
  float* to = e < size ? layer.dweight : layer.dbias;
  if (!to || row >= layer.out || column >= layer.in) return;
  float total = 0.0f;
  for (const auto& of : part) total += reinterpret_cast<const float*>(of)[threadIdx.x];
  to[e < size ? std::int64_t(row) * layer.in + column : row] = a.common * total;
}

}  // namespace sk::cuda
