// Where everything is that a block has, in shared memory and in its threads' registers.
#pragma once

#include "curves.cuh"
#include "floats.cuh"
#include "halves.cuh"

namespace sk::cuda {

template <Precision kPrecision, int H_, int kGroups, Room kRoom>
struct RegisterBlock {
  using To = Numbers<kPrecision>;
  using Fragment = typename To::Fragment;
  static constexpr int H = H_;
  static constexpr int kParts = kWarps / kGroups, kRows = 16 * kGroups;
  static constexpr int kDepth = H / 16;          // fragments of all columns
  static constexpr int kMine = kDepth / kParts;  // of the columns of a warp
  static constexpr int kNumbers = sizeof(Fragment) / 4;
  static constexpr bool kHalves = To::kBytes == 2;
  static constexpr bool kWide = kRoom != Room::kPlain, kRoomy = kRoom >= Room::kSlot;
  static constexpr int kOrder = kRoom == Room::kSecond ? 2 : 1, kTerms = 1 + kOrder;
  // fp16 has no room for derivatives of order 3: sin(30 z) has 27000
  static constexpr bool kKeptInHalves = kHalves && (kOrder == 1 || kPrecision == Precision::kBf16);
  static constexpr bool kOutputsHere = (kParts == 1 || !kHalves) && !kRoomy;
  static constexpr bool kFew = RegisterWay{H, kGroups, 0, 0, kWide}.of_few();
  static constexpr int kOutputPieces = kWide ? kMostOutputPieces : 1, kOutputs = 4 * kOutputPieces;
  static_assert(kMine >= 1 && kRows % To::kTogether == 0 && !(kWide && (kFew || kParts == 1)));
  // All columns of a product's left side: in registers, or where the warps that share rows have stored them
  struct Operands {
    Fragment made[kParts == 1 ? kDepth : 1];
    std::uint32_t array;
  };
  // The left side of the first layer's product: a piece of inputs, or where all are
  struct Source {
    Fragment made;
    std::uint32_t array;
  };
  using Columns = Sums[2 * kMine];

  const RegisterArguments& all;
  unsigned char* shared;
  std::int64_t first_row = 0;

  SK_INLINE RegisterBlock(const RegisterArguments& all, unsigned char* shared) : all(all), shared(shared) {}

  // Of the last layer, of this lane's rows and outputs: in shared memory where registers are few
  enum Output : int { kY, kD1, kD2, kOwed, kD3 };
  float outputs[kOutputsHere ? kOutputNumbers * kOutputPieces : 1];
  SK_INLINE float& y(Output of, int e) {
    if constexpr (kRoomy) {
      constexpr int kOfPiece = kOrder == 2 ? kSecondNumbers : kOutputNumbers;
      return (slot() + own().few)[(e / 4 * kOfPiece + 4 * of + e % 4) * kThreads + threadIdx.x];
    } else if (kFew && (of == kY || of == kD2)) {
      return (slot() + own().few)[(of == kY ? e : 4 + e) * kThreads + threadIdx.x];
    } else if constexpr (kOutputsHere) {
      return outputs[e / 4 * kOutputNumbers + 4 * of + e % 4];
    } else {
      return reinterpret_cast<float*>(
          shared + own().outputs)[(e / 4 * kOutputNumbers + 4 * of + e % 4) * kThreads + threadIdx.x];
    }
  }
  SK_INLINE int input_pieces() const { return kWide ? own().input_pieces : 1; }
  SK_INLINE int output_pieces() const { return kWide ? own().output_pieces : 1; }
  // Whether the piece of a lane's output e is there
  SK_INLINE bool has(int e) const { return e / 4 < output_pieces(); }

  SK_INLINE const Arguments& step() const { return all.step; }
  SK_INLINE const RegisterLayout& own() const { return all.own; }
  SK_INLINE float* slot() const {
    float* at = step().slots + std::int64_t(blockIdx.x) * step().layout.slot_floats;
    return kRoomy ? made_here(at) : at;
  }
  // Layer l, from 0, and what is known of its activation
  SK_INLINE const LayerArguments& layer(int l) const {
    if constexpr (kRoomy) {
      return step().table[l].layer;
    } else {
      return step().layer[l];
    }
  }
  SK_INLINE const Curve& curve(int l) const {
    if constexpr (kRoomy) {
      return step().table[l].curve;
    } else {
      return all.curve[l];
    }
  }
  // Of layer l, from 0, from column i on: `Some` is float2 or float4
  template <class Some>
  SK_INLINE Some biases(int l, int i) const {
    if constexpr (kRoomy) {
      const LayerArguments& of = layer(l);
      Some some{};
      if (!of.bias.data) return some;
#pragma unroll
      for (int e = 0; e < int(sizeof(Some) / 4); ++e) {
        if (i + e < of.out) (&some.x)[e] = static_cast<const float*>(of.bias.data)[(i + e) * of.bias.stride[0]];
      }
      return some;
    } else {
      return *reinterpret_cast<const Some*>(reinterpret_cast<const float*>(shared + own().biases) + l * H + i);
    }
  }
  SK_INLINE int hidden() const { return step().L - 1; }
  static SK_INLINE int part() { return kParts == 1 ? 0 : warp() % kParts; }
  static SK_INLINE int group() { return warp() / kParts; }
  SK_INLINE void go_to(std::int64_t tile) { first_row = tile * kRows + 16 * group(); }
  SK_INLINE std::int64_t tile() const { return first_row / kRows; }
  SK_INLINE std::int64_t row_of(int half) const { return first_row + lane() / 4 + 8 * half; }
  SK_INLINE bool valid(int half) const { return row_of(half) < step().N; }
  static SK_INLINE int output_of(int e) { return e / 4 * kRegisterOutputs + lane() % 4 * 2 + e % 2; }
  // Of piece n of the outputs' adjoints; a roomy way has those of two pieces in a fragment
  SK_INLINE std::uint32_t top(int n) const { return own().top + n * (kRows * kRegisterOutputs * To::kBytes); }
  // Of piece f of inputs
  static SK_INLINE std::uint32_t piece(std::uint32_t of, int f) {
    return of + f * (kRows * kRegisterInputs * To::kBytes);
  }
  SK_INLINE std::uint32_t hidden_array(std::uint32_t of, int l) const {  // of layer l, from 1
    return of + (l - 1) * (kRows * H * To::kBytes);
  }
  // Where a roomy way has of layer l, from 1, what is multiplied: that of its neighbours lies in the other one
  SK_INLINE std::uint32_t operands_at(int l) const { return own().operands + l % 2 * (kRows * H * To::kBytes); }
  // f(n) of pieces of outputs, from piece n on, that go together
  template <class F>
  static SK_INLINE void each_two(int from, int to, F f) {
    if constexpr (kRoomy) {
#pragma unroll 1
      for (int n = from; n < to; n += 2) f(n);
    } else {
      f(0);
    }
  }
  SK_INLINE int own_row() const { return kWide ? own().own_row : kRegisterInputs + kSpare; }
  // What each warp has for itself, of rows of so many floats; of this one, and of number i of those that share rows
  SK_INLINE int own_floats() const { return 16 * own_row(); }
  SK_INLINE float* own_at(int warp) const {
    return reinterpret_cast<float*>(of_block<kRoomy>() + own().own) + own_floats() * warp;
  }
  SK_INLINE float* mine() const { return own_at(warp()); }
  SK_INLINE float* own_of(int i) const { return own_at(group() * kParts + i); }
  SK_INLINE float4& mine_at(int half, int f) const {
    const int row = lane() / 4 + 8 * half;
    return *reinterpret_cast<float4*>(mine() + row * own_row() + f * kRegisterInputs + lane() % 4 * 4);
  }

  // Of the rows of this warp, columns 16 k to 16 k + 15 of an array of N
  SK_INLINE void load(Fragment& to, std::uint32_t array, int k) const {
    To::template load<H>(to, shared, array, 16 * group(), k);
  }
  SK_INLINE void load_inputs(Fragment& to, std::uint32_t array) const {
    if constexpr (kRoomy) {
      load_fragment(to, of_group(array));
    } else {
      To::template load<kRegisterInputs>(to, shared, array, 16 * group(), 0);
    }
  }
  SK_INLINE void store(std::uint32_t array, int k, const Fragment& from) const {
    To::template store<H>(shared, array, 16 * group(), k, from);
  }
  SK_INLINE void store_inputs(std::uint32_t array, const Fragment& from) const {
    if constexpr (kRoomy) {
      store_fragment(of_group(array), from);
    } else {
      To::template store<kRegisterInputs>(shared, array, 16 * group(), 0, from);
    }
  }
  SK_INLINE void fragment(const Operands& a, int k, Fragment& to) const {
    if constexpr (kParts == 1) {
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) to[i] = a.made[k][i];
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

  // Sums of columns 16 j to 16 j + 15 of a warp's, in a fragment's order
  static SK_INLINE float& sum(Columns& c, int j, int i) { return c[2 * j + i / 4][i % 4]; }

  SK_INLINE float* bias_sums(int l) const {  // of hidden layer l, from 1
    if constexpr (kRoomy) {
      return slot() + layer(l - 1).bias_gradient;
    } else {
      return reinterpret_cast<float*>(shared + own().bias_sums) + (l - 1) * H;
    }
  }
  SK_INLINE double* sums() const { return reinterpret_cast<double*>(shared + own().sums) + kTerms * warp(); }
  SK_INLINE std::uint32_t* seed() const { return reinterpret_cast<std::uint32_t*>(shared + own().seed); }

  // ---- Eight numbers of a lane, of columns 16 j of a warp's of hidden layer l, from 1: nobody else reads them ----

  static SK_INLINE int place_of_lane(int l, int j, bool halves) {
    return ((l - 1) * kWarps * kMine + warp() * kMine + j) * (halves ? 512 : 1024) + lane() * 16;
  }
  static SK_INLINE void load_eight(const unsigned char* at, bool halves, float (&to)[8]) {
    if (halves) {
      const uint4 four = *reinterpret_cast<const uint4*>(at);
      Fragment from;
      from[0] = four.x, from[1] = four.y, from[2] = four.z, from[3] = four.w;
      To::unpack(from, to);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 four = *reinterpret_cast<const float4*>(at + 512 * i);
        to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
      }
    }
  }

  template <bool kInSlot>
  SK_INLINE unsigned char* of_block() const {
    return kInSlot ? reinterpret_cast<unsigned char*>(slot()) : shared;
  }

  // This lane's of a fragment of this warp's rows, [kRows, 16] in the slot, which all warps that share them read
  SK_INLINE unsigned char* of_group(std::uint32_t array) const {
    return of_block<true>() + array + group() * (128 * kNumbers) + lane() * 16;
  }
  // Those of an array of each hidden layer, of columns 16 k
  SK_INLINE void load_own(Fragment& to, std::uint32_t array, int l, int j, int k) const {
    if constexpr (kRoomy) {
      load_fragment(to, of_block<true>() + array + place_of_lane(l, j, kHalves));
    } else {
      load(to, hidden_array(array, l), k);
    }
  }
  SK_INLINE void store_in_slot(std::uint32_t array, int l, int j, const Fragment& from) const {
    store_fragment(of_block<true>() + array + place_of_lane(l, j, kHalves), from);
  }
  static SK_INLINE void load_fragment(Fragment& to, const unsigned char* at) {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(at + 128 * i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  }
  static SK_INLINE void store_fragment(unsigned char* at, const Fragment& from) {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 4) {
      *reinterpret_cast<uint4*>(at + 128 * i) = make_uint4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  }

  // What derivatives owe the values
  SK_INLINE unsigned char* q_at(int l, int j) const {
    return of_block<kFew || kRoomy>() + own().q + place_of_lane(l, j, kHalves && own().q_in_halves);
  }
  SK_INLINE void load_q(int l, int j, float (&to)[8]) const {
    load_eight(q_at(l, j), kHalves && own().q_in_halves, to);
  }
  static SK_INLINE void store_eight(unsigned char* at, bool halves, const float (&from)[8]) {
    if (halves) {
      Fragment to;
      To::pack(from, to);
      *reinterpret_cast<uint4*>(at) = make_uint4(to[0], to[1], to[2], to[3]);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<float4*>(at + 512 * i) =
            make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]);
      }
    }
  }
  SK_INLINE void store_q(int l, int j, const float (&from)[8]) const {
    store_eight(q_at(l, j), kHalves && own().q_in_halves, from);
  }

  // σ' and σ''/σ', of four numbers at a time; of order 2 σ', σ'' and σ'''
  SK_INLINE unsigned char* kept_at(int l, int j, int which) const {
    return of_block<kRoomy>() + own().kept + place_of_lane(l + which * hidden(), j, kKeptInHalves);
  }
  SK_INLINE void load_kept(int l, int j, float (&first)[8], float (&ratio)[8]) const {
    load_eight(kept_at(l, j, 0), kHalves, first);
    load_eight(kept_at(l, j, 1), kHalves, ratio);
  }
};

}  // namespace sk::cuda
