// Where everything is that a block has, in shared memory and in its threads' registers.
#pragma once

#include "../registers.h"
#include "numbers.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H_, int kGroups>
struct RegisterBlock {
  using To = Half<kPrecision>;
  static constexpr int H = H_;
  static constexpr int kParts = kWarps / kGroups, kRows = 16 * kGroups;
  static constexpr int kDepth = H / 16;          // fragments of all columns
  static constexpr int kMine = kDepth / kParts;  // of the columns of a warp
  static_assert(kMine >= 1 && kGroups % 2 == 0);
  // All columns of a product's left side: in registers, or where the warps that share rows have stored them
  struct Operands {
    Fragment made[kParts == 1 ? kDepth : 1];
    std::uint32_t array;
  };
  using Columns = Sums[2 * kMine];

  const RegisterArguments& all;
  unsigned char* shared;
  std::int64_t first_row = 0;

  SK_INLINE RegisterBlock(const RegisterArguments& all, unsigned char* shared) : all(all), shared(shared) {}

  // Of the last layer, of this lane's rows and outputs: in shared memory where rows are shared, since registers are few
  enum Output : int { kY, kD1, kD2, kOwed };
  float outputs[kParts == 1 ? kOutputNumbers : 1];
  SK_INLINE float& y(Output of, int e) {
    if constexpr (kParts == 1) {
      return outputs[4 * of + e];
    } else {
      return reinterpret_cast<float*>(shared + own().outputs)[(4 * of + e) * kThreads + threadIdx.x];
    }
  }

  SK_INLINE const Arguments& step() const { return all.step; }
  SK_INLINE const RegisterLayout& own() const { return all.own; }
  SK_INLINE int hidden() const { return step().L - 1; }
  static SK_INLINE int part() { return kParts == 1 ? 0 : warp() % kParts; }
  static SK_INLINE int group() { return warp() / kParts; }
  SK_INLINE std::int64_t row_of(int half) const { return first_row + lane() / 4 + 8 * half; }
  SK_INLINE bool valid(int half) const { return row_of(half) < step().N; }
  static SK_INLINE int output_of(int e) { return lane() % 4 * 2 + e % 2; }
  SK_INLINE std::uint32_t hidden_array(std::uint32_t of, int l) const {  // of layer l, from 1
    return of + (l - 1) * (kRows * H * 2);
  }
  SK_INLINE float* mine() const { return reinterpret_cast<float*>(shared + own().own) + kOwnBytes / 4 * warp(); }

  // Of the rows of this warp, columns 16 k to 16 k + 15 of an array of N
  SK_INLINE void load(Fragment& to, std::uint32_t array, int k) const { load_of<H>(to, array, k); }
  SK_INLINE void load_inputs(Fragment& to, std::uint32_t array) const { load_of<kRegisterInputs>(to, array, 0); }
  SK_INLINE void store(std::uint32_t array, int k, const Fragment& from) const { store_of<H>(array, k, from); }
  SK_INLINE void store_inputs(std::uint32_t array, const Fragment& from) const {
    store_of<kRegisterInputs>(array, 0, from);
  }
  template <int N>
  SK_INLINE void load_of(Fragment& to, std::uint32_t array, int k) const {
    ldmatrix(to, shared + ((array + place<N>(16 * group() + lane() % 16, lane() / 16)) ^ 32 * k));
  }
  template <int N>
  SK_INLINE void store_of(std::uint32_t array, int k, const Fragment& from) const {
    const std::uint32_t at = array + place<N>(16 * group() + lane() / 4, 0) + lane() % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<std::uint32_t*>(shared + (at ^ (32 * k + 16 * (i / 2))) + i % 2 * (8 * N * 2)) = from[i];
    }
  }

  SK_INLINE void fragment(const Operands& a, int k, Fragment& to) const {
    if constexpr (kParts == 1) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = a.made[k][i];
    } else {
      load(to, a.array, k);
    }
  }

  // The warps that share rows have stored what they all read
  static SK_INLINE void meet() {
    if constexpr (kParts == 1) {
      __syncwarp();
    } else {
      barrier(1 + group(), 32 * kParts);
    }
  }

  static SK_INLINE void unpack(const Fragment& from, float (&to)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[2 * i] = To::low(from[i]), to[2 * i + 1] = To::high(from[i]);
  }
  static SK_INLINE void pack(const float (&from)[8], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = To::pack(from[2 * i], from[2 * i + 1]);
  }
  // Sums of columns 16 j to 16 j + 15 of a warp's, in a fragment's order
  static SK_INLINE float& sum(Columns& c, int j, int i) { return c[2 * j + i / 4][i % 4]; }

  SK_INLINE float* bias_sums(int l) const {  // of hidden layer l, from 1
    return reinterpret_cast<float*>(shared + own().bias_sums) + (l - 1) * H;
  }
  SK_INLINE double* sums() const { return reinterpret_cast<double*>(shared + own().sums) + 2 * warp(); }
  SK_INLINE std::uint32_t* seed() const { return reinterpret_cast<std::uint32_t*>(shared + own().seed); }

  // ---- What derivatives owe the values: each lane its own ----

  SK_INLINE unsigned char* q_at(int l, int j) const {
    const int size = own().q_in_halves ? 512 : 1024;
    return shared + own().q + ((l - 1) * kWarps * kMine + warp() * kMine + j) * size + lane() * 16;
  }
  SK_INLINE void load_q(int l, int j, float (&to)[8]) const {
    const unsigned char* at = q_at(l, j);
    if (own().q_in_halves) {
      const uint4 four = *reinterpret_cast<const uint4*>(at);
      const Fragment from = {four.x, four.y, four.z, four.w};
      unpack(from, to);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 four = *reinterpret_cast<const float4*>(at + 512 * i);
        to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
      }
    }
  }
  SK_INLINE void store_q(int l, int j, const float (&from)[8]) const {
    unsigned char* at = q_at(l, j);
    if (own().q_in_halves) {
      Fragment to;
      pack(from, to);
      *reinterpret_cast<uint4*>(at) = make_uint4(to[0], to[1], to[2], to[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<float4*>(at + 512 * i) =
            make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
      }
    }
  }
};

}  // namespace sk::cuda
