// A Sobolev step whose streams live in registers (docs/math.md, sections 3 and 4). A warp owns 16 samples of a tile, or
// shares their columns with others: the sums of a layer's product, after the activation, are operands of the next one.
// What weight gradients are made of, values, tangents and adjoints, lies in shared memory as 16-bit numbers; the block
// brings them together after each round, in sums that stay in registers to its end.
#pragma once

#include "philox.cuh"
#include "registers.h"
#include "step.cuh"

namespace sk::cuda {

// 16 rows and 16 columns, as sums of two products and as an operand: a lane has rows g and g + 8, and of columns
// 2t, 2t + 1, 2t + 8 and 2t + 9, where g = lane / 4 and t = lane % 4.
using Fragment = std::uint32_t[4];
using Sums = float[4];  // of 8 columns: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)

// f(0) to f(n - 1), each number a type
template <int n>
struct Constant {
  constexpr SK_INLINE operator int() const { return n; }
};
template <int n, class F>
SK_INLINE void unrolled(F f) {
  if constexpr (n > 0) {
    unrolled<n - 1>(f);
    f(Constant<n - 1>{});
  }
}

template <Precision kPrecision>
struct Half;

template <>
struct Half<Precision::kBf16> {
  static constexpr std::uint32_t kOnes = 0x3F803F80u;
  static SK_INLINE std::uint32_t pack(float a, float b) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(two);
  }
  static SK_INLINE float low(std::uint32_t two) { return __uint_as_float(two << 16); }
  static SK_INLINE float high(std::uint32_t two) { return __uint_as_float(two & 0xFFFF0000u); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_bf16(c, a, b0, b1);
  }
};

template <>
struct Half<Precision::kFp16> {
  static constexpr std::uint32_t kOnes = 0x3C003C00u;
  static SK_INLINE std::uint32_t pack(float a, float b) {
    const __half2 two = __floats2half2_rn(a, b);
    return reinterpret_cast<const std::uint32_t&>(two);
  }
  static SK_INLINE float low(std::uint32_t two) { return __low2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE float high(std::uint32_t two) { return __high2float(reinterpret_cast<const __half2&>(two)); }
  static SK_INLINE void multiply(Sums& c, const Fragment& a, std::uint32_t b0, std::uint32_t b1) {
    mma_fp16(c, a, b0, b1);
  }
};

// σ' and σ''/σ' of tanh, and of what `Curve` describes
struct TanhCurve {
  static SK_INLINE float first(float h) { return fmaf(-h, h, 1.0f); }
  static SK_INLINE float ratio(float h) { return -2.0f * h; }
};

struct AnyCurve {
  const Curve& of;
  SK_INLINE float first(float h) const {
    float y = fmaf(fmaf(of.first[2], h, of.first[1]), h, of.first[0]);
    if (of.beta != 0.0f) y -= expf(-of.beta * h);
    return of.split && h > 0.0f ? of.top : y;
  }
  SK_INLINE float ratio(float h) const {
    if (of.split && !(h < 0.0f)) return h == h ? 0.0f : h;
    float y = fmaf(of.ratio[1], h, of.ratio[0]);
    if (of.beta != 0.0f) y += of.beta * expf(-of.beta * h);
    return y;
  }
};

template <Precision kPrecision, int H, int kGroups, int kBetween>
struct RegisterStep {
  using To = Half<kPrecision>;
  static constexpr int kParts = kWarps / kGroups, kRows = 16 * kGroups;
  static constexpr int kDepth = H / 16;          // fragments of all columns
  static constexpr int kMine = kDepth / kParts;  // of the columns of a warp
  // Pieces [16, 8] of a gradient that a warp has: of [H, H] a rectangle
  static constexpr int kDown = H == 128 ? 2 : 1, kRight = H <= 32 ? 1 : H / 16;
  static constexpr int kAcross = H / 8 / kRight;
  static constexpr int kFirst = (H / 8 + kWarps - 1) / kWarps;
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

  Sums of_first[kFirst] = {}, of_between[kBetween][kDown][kRight] = {}, of_last = {};
  float of_last_bias[2] = {};

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

  // ---- Where things are ----

  SK_INLINE const Arguments& step() const { return all.step; }
  SK_INLINE const RegisterLayout& own() const { return all.own; }
  SK_INLINE int hidden() const { return step().L - 1; }
  static SK_INLINE int lane() { return threadIdx.x % 32; }
  static SK_INLINE int warp() { return threadIdx.x / 32; }
  static SK_INLINE int part() { return kParts == 1 ? 0 : warp() % kParts; }
  static SK_INLINE int group() { return warp() / kParts; }
  SK_INLINE std::int64_t row_of(int half) const { return first_row + lane() / 4 + 8 * half; }
  SK_INLINE bool valid(int half) const { return row_of(half) < step().N; }
  static SK_INLINE int output_of(int e) { return lane() % 4 * 2 + e % 2; }
  SK_INLINE std::uint32_t hidden_array(std::uint32_t of, int l) const {  // of layer l, from 1
    return of + (l - 1) * (kRows * H * 2);
  }
  SK_INLINE float* mine() const { return reinterpret_cast<float*>(shared + own().own) + kOwnBytes / 4 * warp(); }

  // Chunk c of 8 numbers of a row of N: chunks lie in an order that depends on the row, so that eight rows of a chunk
  // are in different banks. Arrays begin at multiples of 256 bytes, so that another chunk is `^ 16 c` away, if the bits
  // of both differ, and eight or more rows farther has the same order.
  template <int N>
  static SK_INLINE std::uint32_t place(int row, int c) {
    constexpr int kChunks = N / 8;
    const int order = kChunks >= 8 ? row % 8 : kChunks == 4 ? row / 2 % 4 : kChunks == 2 ? row / 4 % 2 : 0;
    return row * N * 2 + (c ^ order) * 16;
  }
  SK_INLINE void matrices(Fragment& to, std::uint32_t at) const { ldmatrix(to, shared + at); }
  SK_INLINE void changed_matrices(Fragment& to, std::uint32_t at) const { ldmatrix_transposed(to, shared + at); }

  // Of the rows of this warp, columns 16 k to 16 k + 15
  template <int N>
  SK_INLINE void load(Fragment& to, std::uint32_t array, int k) const {
    matrices(to, (array + place<N>(16 * group() + lane() % 16, lane() / 16)) ^ 32 * k);
  }
  template <int N>
  SK_INLINE void store(std::uint32_t array, int k, const Fragment& from) const {
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
      load<H>(to, a.array, k);
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

  // ---- Once for a block ----

  SK_INLINE void begin() const {
    const Arguments& a = step();
    for (int l = 0; l < a.L; ++l) {
      const LayerArguments& layer = a.layer[l];
      const bool is_first = l == 0, is_last = l == hidden();
      const int rows = is_last ? kRegisterOutputs : H, half = (is_first ? kRegisterInputs : H) / 2;
      unsigned char* to = shared + (is_first  ? own().first
                                    : is_last ? own().last
                                              : own().between + (l - 1) * H * H * 2);
#pragma unroll 4
      for (int i = threadIdx.x; i < rows * half; i += kThreads) {
        const int row = i / half, k = i % half * 2;
        const int column = is_first ? k % 8 * 2 + k / 8 * 2 : k;
        float of[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          of[e] = row < layer.out && column + e < layer.in ? number(layer.weight, row, column + e) : 0.0f;
        }
        const std::uint32_t at = is_first ? place<kRegisterInputs>(row, k / 8) : place<H>(row, k / 8);
        *reinterpret_cast<std::uint32_t*>(to + at + k % 8 * 2) = To::pack(of[0], of[1]);
      }
      float* bias = reinterpret_cast<float*>(shared + own().biases) + l * H;
      for (int i = threadIdx.x; i < H; i += kThreads) {
        bias[i] = layer.bias.data && i < layer.out ? number(layer.bias, i) : 0.0f;
      }
    }
    for (int i = threadIdx.x; a.gradients && i < hidden() * H; i += kThreads) bias_sums(1)[i] = 0.0f;
    if (lane() == 0) sums()[0] = sums()[1] = 0.0;
    if (threadIdx.x == 0) store_seed(a.directions, seed());
    __syncthreads();
  }

  SK_INLINE float* bias_sums(int l) const {  // of hidden layer l, from 1
    return reinterpret_cast<float*>(shared + own().bias_sums) + (l - 1) * H;
  }
  SK_INLINE double* sums() const { return reinterpret_cast<double*>(shared + own().sums) + 2 * warp(); }
  SK_INLINE std::uint32_t* seed() const { return reinterpret_cast<std::uint32_t*>(shared + own().seed); }

  // ---- Products ----

  SK_INLINE void add_bias(Columns& c, int l) const {
    const float* bias = reinterpret_cast<const float*>(shared + own().biases) + l * H;
#pragma unroll
    for (int j = 0; j < 2 * kMine; ++j) {
      const float2 two = *reinterpret_cast<const float2*>(bias + part() * kMine * 16 + 8 * j + lane() % 4 * 2);
      c[j][0] += two.x, c[j][1] += two.y, c[j][2] += two.x, c[j][3] += two.y;
    }
  }
  static SK_INLINE void clear(Columns& c) {
#pragma unroll
    for (int j = 0; j < 2 * kMine; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
  }

  // c += a Wᵀ, of the first layer and of one between
  SK_INLINE void through_first(const Fragment& a, Columns& c) const {
    const int row = part() * kMine * 16 + lane() % 8 + lane() / 16 * 8;
    const std::uint32_t weights = own().first + place<kRegisterInputs>(row, lane() / 8 % 2);
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      Fragment b;
      matrices(b, weights + j * (16 * kRegisterInputs * 2));
      To::multiply(c[2 * j], a, b[0], b[1]);
      To::multiply(c[2 * j + 1], a, b[2], b[3]);
    }
  }
  SK_INLINE std::uint32_t between(int l) const { return own().between + (l - 1) * (H * H * 2); }
  SK_INLINE void through_between(const Operands& a, int l, Columns& c) const {
    const int row = part() * kMine * 16 + lane() % 8 + lane() / 16 * 8;
    const std::uint32_t weights = between(l) + place<H>(row, lane() / 8 % 2);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Fragment left;
      fragment(a, k, left);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        Fragment b;
        matrices(b, (weights ^ 32 * k) + j * (16 * H * 2));
        To::multiply(c[2 * j], left, b[0], b[1]);
        To::multiply(c[2 * j + 1], left, b[2], b[3]);
      }
    }
  }
  SK_INLINE void through(int l, const Fragment& source, const Operands& a, Columns& c) const {
    if (l == 0) {
      through_first(source, c);
    } else {
      through_between(a, l, c);
    }
  }
  SK_INLINE void through_last(const Operands& a, Sums& c) const {
    const std::uint32_t weights = own().last + place<H>(lane() % 8, lane() / 8 % (kDepth == 1 ? 2 : 4));
#pragma unroll
    for (int k = 0; k < kDepth; k += 2) {
      Fragment b;
      matrices(b, weights ^ 32 * k);
#pragma unroll
      for (int i = 0; i < (kDepth == 1 ? 1 : 2); ++i) {
        Fragment left;
        fragment(a, k + i, left);
        To::multiply(c, left, b[2 * i], b[2 * i + 1]);
      }
    }
  }

  // c += a W
  SK_INLINE void pull_first(const Operands& a, Sums (&c)[2]) const {
    const std::uint32_t weights = own().first + place<kRegisterInputs>(lane() % 16, lane() / 16);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Fragment left, b;
      fragment(a, k, left);
      changed_matrices(b, weights + k * (16 * kRegisterInputs * 2));
      To::multiply(c[0], left, b[0], b[1]);
      To::multiply(c[1], left, b[2], b[3]);
    }
  }
  SK_INLINE void pull_between(const Operands& a, int l, Columns& c) const {
    const std::uint32_t weights = between(l) + place<H>(lane() % 16, part() * kMine * 2 + lane() / 16);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      Fragment left;
      fragment(a, k, left);
#pragma unroll
      for (int j = 0; j < kMine; ++j) {
        Fragment b;
        changed_matrices(b, (weights ^ 32 * j) + k * (16 * H * 2));
        To::multiply(c[2 * j], left, b[0], b[1]);
        To::multiply(c[2 * j + 1], left, b[2], b[3]);
      }
    }
  }
  SK_INLINE void pull_last(const Fragment& a, Columns& c) const {
    constexpr int kAtOnce = kMine == 1 ? 2 : 4;
    const std::uint32_t weights = own().last + place<H>(lane() % 8, part() * kMine * 2 + lane() / 8 % kAtOnce);
#pragma unroll
    for (int j = 0; j < 2 * kMine; j += kAtOnce) {
      Fragment b;
      changed_matrices(b, weights ^ 16 * j);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) To::multiply(c[j + i], a, b[i], 0u);
    }
  }
  // The adjoint of what layer l, from 1, is given; of the last one it is in `top`
  SK_INLINE void pull(int l, const Fragment& top, const Operands& a, Columns& c) const {
    clear(c);
    if (l == hidden()) {
      pull_last(top, c);
    } else {
      pull_between(a, l, c);
    }
  }

  // Stores the fragments that f gives, of columns 16 j of a warp's, and makes operands of them
  template <class F>
  SK_INLINE void hand_on(std::uint32_t array, Operands& a, F f) const {
#pragma unroll
    for (int j = 0; j < kMine; ++j) {
      Fragment made;
      f(j, part() * kMine + j, made);
      store<H>(array, part() * kMine + j, made);
      if constexpr (kParts == 1) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a.made[j][i] = made[i];
      }
    }
    a.array = array;
    meet();
  }

  // f(the curve of layer l's activation), l from 0
  template <class F>
  SK_INLINE void by_curve(int l, F f) const {
    if (all.curve[l].tanh) {
      f(TanhCurve{});
    } else {
      f(AnyCurve{all.curve[l]});
    }
  }

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

  // ---- A tile ----

  SK_INLINE void run(std::int64_t tile) {
    first_row = tile * kRows + 16 * group();
    float rho[2] = {0.0f, 0.0f};
    Fragment x;
    load_x(x);
    values_forward(x);
    bool owed = false;
#pragma unroll 1
    for (int i = 0; i < step().rounds; ++i) {
      if (step().from == From::kDirections) {
        if (i % own().batch == 0) prepare_tangents(i);
        by_tangent(i, owed, rho[kFirst_]);
      } else {
        by_gradient(i, owed, rho[kFirst_]);
      }
      owed = step().gradients && step().factor[kFirst_] != 0.0f;
    }
    value_residual(owed, rho[kValue_]);
#pragma unroll
    for (int term = 0; term < 2; ++term) {
      for (int apart = 16; apart; apart /= 2) rho[term] += __shfl_xor_sync(~0u, rho[term], apart);
      if (lane() == 0) sums()[term] += rho[term];
    }
    if (!step().gradients) __syncthreads();
  }
  static constexpr Term kValue_ = Term::kValue, kFirst_ = Term::kFirst;

  // A lane has columns 4t to 4t + 3 of its two rows: the order of an operand's columns is that of the first weights.
  static SK_INLINE void operand_of(const float (&of)[2][4], Fragment& to) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = To::pack(of[i % 2][i / 2 * 2], of[i % 2][i / 2 * 2 + 1]);
  }

  SK_INLINE void load_x(Fragment& to) const {
    float of[2][4];
    const int column = lane() % 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = valid(half) && column + i < step().D;
        of[half][i] = there ? number(step().x, row_of(half), column + i) : 0.0f;
      }
    }
    operand_of(of, to);
    if (part() == 0) store<kRegisterInputs>(own().x, 0, to);
  }

  SK_INLINE void direction(int p, float (&v)[2][4]) const {
    const Directions& from = step().directions;
    const bool given = from.distribution == Distribution::kGiven, sphere = from.distribution == Distribution::kSphere;
    const int column = lane() % 4 * 4, n = step().W;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 drawn = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (valid(half) && column < n) {
        if (given) {
          float of[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) of[i] = column + i < n ? number(from.given, p, row_of(half), column + i) : 0.0f;
          drawn = make_float4(of[0], of[1], of[2], of[3]);
        } else {
          const std::uint32_t sample = from.shared ? 0u : seed()[3] + std::uint32_t(row_of(half));
          drawn = draw(from.distribution, seed(), sample, p, column, n);
        }
      }
      float factor = given ? 1.0f : float(from.magnitude);
      if (sphere) {
        float square = drawn.x * drawn.x + drawn.y * drawn.y + drawn.z * drawn.z + drawn.w * drawn.w;
        square += __shfl_xor_sync(~0u, square, 1);
        square += __shfl_xor_sync(~0u, square, 2);
        factor = valid(half) ? factor / sqrtf(square) : 0.0f;
      }
      v[half][0] = drawn.x * factor, v[half][1] = drawn.y * factor;
      v[half][2] = drawn.z * factor, v[half][3] = drawn.w * factor;
    }
  }

  // ---- Values ----

  SK_INLINE void values_forward(const Fragment& x) {
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      add_bias(c, l);
      through(l, x, a, c);
      const Function& of = step().layer[l].activation;
      const bool tanh = all.curve[l].tanh;
      hand_on(hidden_array(own().h, l + 1), a, [&](int j, int, Fragment& made) {
        if (tanh) {
          float value[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) value[i] = tanh_approx(sum(c, j, i));
          pack(value, made);
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float4 z = make_float4(c[2 * j + i][0], c[2 * j + i][1], c[2 * j + i][2], c[2 * j + i][3]);
            const Activated s = activated(of.row, of.parameters[0], of.parameters[1], z);
            made[2 * i] = To::pack(s.value[0], s.value[1]), made[2 * i + 1] = To::pack(s.value[2], s.value[3]);
          }
        }
      });
    }
    const float2 bias = *reinterpret_cast<const float2*>(reinterpret_cast<const float*>(shared + own().biases) +
                                                         hidden() * H + lane() % 4 * 2);
    Sums z = {bias.x, bias.y, bias.x, bias.y};
    through_last(a, z);
    const Function& of = step().layer[hidden()].activation;
    const Activated s = activated(of.row, of.parameters[0], of.parameters[1], make_float4(z[0], z[1], z[2], z[3]));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      y(kY, e) = s.value[e], y(kD1, e) = s.d1[e], y(kD2, e) = s.d2[e], y(kOwed, e) = 0.0f;
    }
  }

  // ---- Residuals ----

  // The slope of a residual, which it adds to the term if told to; a term or a residual of weight 0 may have any
  // target, also NaN.
  SK_INLINE float slope(Term term, std::int64_t row, float r, float weight, float& rho, bool added) const {
    const Function& loss = step().loss[term];
    if (step().sample_weight.data) weight *= number(step().sample_weight, term, row);
    if (weight == 0.0f) r = 0.0f;
    Residual<float> of = LossMse::call(r, nullptr);
    if (loss.row != 0) of = residual(loss.row, loss.parameters[0], loss.parameters[1], r);
    if (added) rho += of.value * weight;
    return step().factor[term] == 0.0f ? 0.0f : step().factor[term] * of.slope * weight;
  }
  SK_INLINE float output_weight(int o) const {
    return step().output_weight.data ? number(step().output_weight, o) : 1.0f;
  }
  SK_INLINE float derivative_weight(int p, std::int64_t row, int o) const {
    return step().derivative_weight.data ? number(step().derivative_weight, p, row, o) : 1.0f;
  }

  // Adjoints of the outputs as an operand of 8 columns, the others 0
  SK_INLINE void top_of(const float (&of)[4], Fragment& to) const {
    to[0] = To::pack(of[0], of[1]), to[1] = To::pack(of[2], of[3]), to[2] = to[3] = 0u;
    if (part() != 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 16 * group() + lane() / 4 + 8 * i;
      *reinterpret_cast<std::uint32_t*>(shared + own().top + place<kRegisterOutputs>(row, 0) + lane() % 4 * 4) = to[i];
    }
  }

  SK_INLINE void value_residual(bool owed, float& rho) {
    const Target& target = step().target[Term::kValue];
    float back[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = output_of(e);
      back[e] = 0.0f;
      if (valid(e / 2) && o < step().O && target.kind != TargetKind::kNone) {
        const float r = y(kY, e) - number(target.data, row_of(e / 2), o);
        back[e] = y(kD1, e) * slope(Term::kValue, row_of(e / 2), r, output_weight(o), rho, part() == 0);
      }
      back[e] += y(kOwed, e);
    }
    if (!step().gradients) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) of_last_bias[e % 2] += back[e];
    Fragment top;
    top_of(back, top);
    Operands a;
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(hidden_array(own().left, l), a, [&](int j, int k, Fragment& made) {
          float h[8], q[8] = {};
          Fragment from;
          load<H>(from, hidden_array(own().h, l), k);
          unpack(from, h);
          if (owed) load_q(l, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) q[i] = fmaf(curve.first(h[i]), sum(c, j, i), q[i]);
          pack(q, made);
        });
      });
    }
    if (step().dx) store_dx(a);
    __syncthreads();
    bring_together(own().x, own().h, true);
    __syncthreads();
  }

  SK_INLINE void store_dx(const Operands& a) const {
    Sums of[2] = {};
    pull_first(a, of);
    if (part() != 0) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int half = i / 2 % 2, d = lane() % 4 * 4 + i / 4 * 2 + i % 2;
      if (valid(half) && d < step().D) step().dx[row_of(half) * step().D + d] = step().common * of[i / 4][i % 4];
    }
  }

  // ---- A tangent from a direction ----

  SK_INLINE std::uint32_t source_at(int p) const {
    return own().source + p % own().batch * (kRows * kRegisterInputs * 2);
  }
  SK_INLINE float4& targets_at(int p) const {
    return reinterpret_cast<float4*>(shared + own().targets)[(p % own().batch * kGroups + group()) * 32 + lane()];
  }

  // Directions from p on, of a batch, and the tangents of the target along them; warps that share rows share them
  SK_INLINE void prepare_tangents(int from) const {
    const bool dense = step().target[Term::kFirst].kind != TargetKind::kProjected;
    const int to = min(step().P, from + own().batch);
#pragma unroll 1
    for (int p = from + part(); p < to; p += kParts) {
      float v[2][4];
      direction(p, v);
      Fragment source;
      operand_of(v, source);
      store<kRegisterInputs>(source_at(p), 0, source);
      if (dense) {
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          *reinterpret_cast<float4*>(mine() + (lane() / 4 + 8 * half) * kOwnRow + lane() % 4 * 4) =
              make_float4(v[half][0], v[half][1], v[half][2], v[half][3]);
        }
        __syncwarp();
      }
#pragma unroll 1
      for (int half = 0; half < 2; ++half)
        reinterpret_cast<float2*>(&targets_at(p))[half] = tangent_targets(p, half, dense);
    }
    meet();
  }

  // (Df(x)[v_p])_o of one of this lane's rows, and of its outputs
  SK_INLINE float2 tangent_targets(int p, int half, bool dense) const {
    const Strided& data = step().target[Term::kFirst].data;
    // rows and outputs that are not there have any number
    const std::int64_t row = min(row_of(half), step().N - 1);
    const int o[2] = {min(output_of(0), step().O - 1), min(output_of(1), step().O - 1)};
    if (!dense) return make_float2(number(data, p, row, o[0]), number(data, p, row, o[1]));
    const float* from = static_cast<const float*>(data.data) + row * data.stride[0] + o[0] * data.stride[1];
    const std::int64_t apart = (o[1] - o[0]) * data.stride[1];
    const float* v = mine() + (lane() / 4 + 8 * half) * kOwnRow;
    const bool wide = step().W % 4 == 0 && data.stride[0] % 4 == 0 && data.stride[1] % 4 == 0 && data.stride[2] == 1 &&
                      reinterpret_cast<std::uintptr_t>(data.data) % 16 == 0;
    float2 of = make_float2(0.0f, 0.0f);
    if (wide) {
#pragma unroll 2
      for (int d = 0; d < step().W; d += 4) {
        const float4 x = *reinterpret_cast<const float4*>(from + d), y = *reinterpret_cast<const float4*>(v + d);
        const float4 z = *reinterpret_cast<const float4*>(from + apart + d);
        of.x = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, of.x))));
        of.y = fmaf(z.x, y.x, fmaf(z.y, y.y, fmaf(z.z, y.z, fmaf(z.w, y.w, of.y))));
      }
    } else {
#pragma unroll 2
      for (int d = 0; d < step().W; ++d, from += data.stride[2]) {
        of.x = fmaf(from[0], v[d], of.x), of.y = fmaf(from[apart], v[d], of.y);
      }
    }
    return of;
  }

  SK_INLINE void by_tangent(int p, bool owed, float& rho) {
    Fragment source;
    load<kRegisterInputs>(source, source_at(p), 0);
    Operands a;
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(hidden_array(own().right, l + 1), a, [&](int j, int k, Fragment& made) {
          float h[8];
          Fragment from;
          load<H>(from, hidden_array(own().h, l + 1), k);
          unpack(from, h);
#pragma unroll
          for (int i = 0; i < 8; ++i) h[i] = curve.first(h[i]) * sum(c, j, i);
          pack(h, made);
        });
      });
    }
    Sums z_dot = {};
    through_last(a, z_dot);
    const float4 target = targets_at(p);
    float back[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int o = output_of(e);
      float of = 0.0f;
      if (valid(e / 2) && o < step().O) {
        const float weight = output_weight(o) * derivative_weight(p, row_of(e / 2), o);
        const float r = y(kD1, e) * z_dot[e] - (&target.x)[e];
        of = slope(Term::kFirst, row_of(e / 2), r, weight, rho, part() == 0);
      }
      back[e] = y(kD1, e) * of;
      y(kOwed, e) += y(kD2, e) * z_dot[e] * of;
    }
    if (!step().gradients || step().factor[Term::kFirst] == 0.0f) return meet();
    Fragment top;
    top_of(back, top);
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(hidden_array(own().left, l), a, [&](int j, int k, Fragment& made) {
          float h[8], h_dot[8], q[8] = {};
          Fragment from;
          load<H>(from, hidden_array(own().h, l), k);
          unpack(from, h);
          load<H>(from, hidden_array(own().right, l), k);
          unpack(from, h_dot);
          if (owed) load_q(l, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            q[i] = fmaf(curve.ratio(h[i]) * h_dot[i], sum(c, j, i), q[i]);
            h[i] = curve.first(h[i]) * sum(c, j, i);
          }
          store_q(l, j, q);
          pack(h, made);
        });
      });
    }
    __syncthreads();
    bring_together(source_at(p), own().right, false);
    __syncthreads();
  }

  // ---- The gradient of output o, and its adjoint as a tangent along it ----

  SK_INLINE void by_gradient(int o, bool owed, float& rho) {
    float back[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) back[e] = output_of(e) == o ? y(kD1, e) : 0.0f;
    Fragment top;
    top_of(back, top);
    Operands a;
#pragma unroll 1
    for (int l = hidden(); l > 0; --l) {
      Columns c;
      pull(l, top, a, c);
      by_curve(l - 1, [&](auto curve) {
        hand_on(hidden_array(own().left, l), a, [&](int j, int k, Fragment& made) {
          float h[8];
          Fragment from;
          load<H>(from, hidden_array(own().h, l), k);
          unpack(from, h);
#pragma unroll
          for (int i = 0; i < 8; ++i) h[i] = curve.first(h[i]) * sum(c, j, i);
          pack(h, made);
        });
      });
    }
    Sums pulled[2] = {};
    pull_first(a, pulled);
    float g_bar[2][4];
    projected_residuals(o, pulled, g_bar, rho);
    if (!step().gradients || step().factor[Term::kFirst] == 0.0f) return meet();
    Fragment source;
    operand_of(g_bar, source);
    if (part() == 0) store<kRegisterInputs>(own().source, 0, source);
#pragma unroll 1
    for (int l = 0; l < hidden(); ++l) {
      Columns c;
      clear(c);
      through(l, source, a, c);
      by_curve(l, [&](auto curve) {
        hand_on(hidden_array(own().right, l + 1), a, [&](int j, int k, Fragment& made) {
          float h[8], delta[8], q[8] = {};
          Fragment from;
          load<H>(from, hidden_array(own().h, l + 1), k);
          unpack(from, h);
          load<H>(from, hidden_array(own().left, l + 1), k);
          unpack(from, delta);
          if (owed) load_q(l + 1, j, q);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            q[i] = fmaf(curve.ratio(h[i]) * delta[i], sum(c, j, i), q[i]);
            h[i] = curve.first(h[i]) * sum(c, j, i);
          }
          store_q(l + 1, j, q);
          pack(h, made);
        });
      });
    }
    Sums z_dot = {};
    through_last(a, z_dot);
#pragma unroll
    for (int e = 0; e < 4; ++e) y(kOwed, e) += output_of(e) == o ? y(kD2, e) * z_dot[e] : 0.0f;
    __syncthreads();
    bring_together(own().source, own().right, false);
    __syncthreads();
  }

  // Of the gradient along each direction, and its adjoint; warps that share rows share directions
  SK_INLINE void projected_residuals(int o, const Sums (&pulled)[2], float (&g_bar)[2][4], float& rho) const {
    const Target& target = step().target[Term::kFirst];
    const bool dense = target.kind == TargetKind::kDense;
    const int column = lane() % 4 * 4;
    float g[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        g[half][i] = pulled[i / 2][2 * half + i % 2], g_bar[half][i] = 0.0f;
        if (dense && valid(half) && column + i < step().W)
          g[half][i] -= number(target.data, row_of(half), o, column + i);
      }
    }
#pragma unroll 1
    for (int p = part(); p < step().P; p += kParts) {
      float v[2][4];
      direction(p, v);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float r = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (v[half][i] != 0.0f) r = fmaf(g[half][i], v[half][i], r);  // of a basis all but one are 0
        }
        r += __shfl_xor_sync(~0u, r, 1);
        r += __shfl_xor_sync(~0u, r, 2);
        if (valid(half) && !dense) r -= number(target.data, p, row_of(half), o);
        float of = 0.0f;
        if (valid(half)) {
          const float weight = output_weight(o) * derivative_weight(p, row_of(half), o);
          of = slope(Term::kFirst, row_of(half), r, weight, rho, lane() % 4 == 0);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) g_bar[half][i] = fmaf(of, v[half][i], g_bar[half][i]);
      }
    }
    if constexpr (kParts > 1) {
      float4* to = reinterpret_cast<float4*>(mine()) + lane();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[32 * half] = make_float4(g_bar[half][0], g_bar[half][1], g_bar[half][2], g_bar[half][3]);
      }
      meet();
      const float4* from =
          reinterpret_cast<const float4*>(shared + own().own) + kOwnBytes / 16 * kParts * group() + lane();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 of = from[32 * half];
#pragma unroll
        for (int i = 1; i < kParts; ++i) {
          const float4 more = from[kOwnBytes / 16 * i + 32 * half];
          of = make_float4(of.x + more.x, of.y + more.y, of.z + more.z, of.w + more.w);
        }
        g_bar[half][0] = of.x, g_bar[half][1] = of.y, g_bar[half][2] = of.z, g_bar[half][3] = of.w;
      }
    }
  }

  // ---- Gradients of weights: sums over the block's rows ----

  // Of 32 rows two operands, rows and columns of an array changed: of columns 16 m, or 8 n
  template <int N>
  static SK_INLINE std::uint32_t left_place(int m) {
    return place<N>(lane() % 8 + lane() / 16 * 8, 2 * m + lane() / 8 % 2);
  }
  template <int N>
  SK_INLINE void left_of(std::uint32_t at, int row, Fragment (&to)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) changed_matrices(to[i], at + (row + 16 * i) * (N * 2));
  }
  template <int N>
  SK_INLINE void right_of(std::uint32_t at, int row, Fragment& to) const {
    changed_matrices(to, at + row * (N * 2));
  }
  static SK_INLINE void add(Sums& c, const Fragment (&left)[2], const Fragment& right) {
    To::multiply(c, left[0], right[0], right[1]);
    To::multiply(c, left[1], right[2], right[3]);
  }

  // Of a piece's rows, times ones
  SK_INLINE void add_bias_sums(int l, int m, const Sums& c) const {
    float* to = bias_sums(l) + 16 * m + lane() / 4;
    if (lane() % 4 == 0) to[0] += c[0], to[8] += c[2];
  }

  // gradient of layer l += leftᵀ of what it was given, `source` or the array of the layer below
  SK_INLINE void bring_together(std::uint32_t source, std::uint32_t below, bool biased) {
    const Fragment ones = {To::kOnes, To::kOnes, To::kOnes, To::kOnes};
    unrolled<kFirst>([&](auto i) {
      const int m = (warp() + kWarps * i) / 2, n = warp() % 2;
      if (m >= H / 16) return;
      const std::uint32_t left = own().left + left_place<H>(m), right = source + place<kRegisterInputs>(lane(), n);
      Sums bias = {};
#pragma unroll 2
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[2], b;
        left_of<H>(left, row, a);
        right_of<kRegisterInputs>(right, row, b);
        add(of_first[i], a, b);
        if (biased && n) add(bias, a, ones);
      }
      if (biased && n) add_bias_sums(1, m, bias);
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      const std::uint32_t left = hidden_array(own().left, l + 2) + left_place<H>(m);
      const std::uint32_t right = hidden_array(below, l + 1) + place<H>(lane(), n);
      Sums bias = {};
#pragma unroll 1
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[kDown][2];
        unrolled<kDown>([&](auto i) { left_of<H>(left ^ 32 * i, row, a[i]); });
        unrolled<kRight>([&](auto j) {
          Fragment b;
          right_of<H>(right ^ 16 * j, row, b);
          unrolled<kDown>([&](auto i) { add(of_between[l][i][j], a[i], b); });
        });
        // of the warps side by side the first kDown have a row of pieces each
        unrolled<kDown>([&](auto i) {
          if (biased && warp() % kAcross == i) add(bias, a[i], ones);
        });
      }
      if (biased && warp() % kAcross < kDown) add_bias_sums(l + 2, m + warp() % kAcross, bias);
    });
    if (warp() < H / 16) {  // of the last layer the transposed, [H, 8]
      const std::uint32_t left = hidden_array(below, hidden()) + left_place<H>(warp());
      const std::uint32_t right = own().top + place<kRegisterOutputs>(lane(), 0);
#pragma unroll 2
      for (int row = 0; row < kRows; row += 32) {
        Fragment a[2], b;
        left_of<H>(left, row, a);
        right_of<kRegisterOutputs>(right, row, b);
        add(of_last, a, b);
      }
    }
  }

  // ---- What a block leaves ----

  SK_INLINE void end() {
    const Arguments& a = step();
    float* slot = a.slots + std::int64_t(blockIdx.x) * a.layout.slot_floats;
    const double* sums = reinterpret_cast<const double*>(shared + own().sums);
    float* outputs = reinterpret_cast<float*>(shared + own().sums) + 4 * kWarps;
    if (a.gradients && part() == 0) {  // of the last bias: a sum over rows
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        for (int apart = 16; apart >= 4; apart /= 2) of_last_bias[i] += __shfl_xor_sync(~0u, of_last_bias[i], apart);
        if (lane() < 4) outputs[kRegisterOutputs * group() + 2 * lane() + i] = of_last_bias[i];
      }
    }
    __syncthreads();
    if (threadIdx.x < 2 * kSums) {
      double of = 0.0;
      for (int i = 0; threadIdx.x % kSums == 0 && i < kWarps; ++i) of += sums[2 * i + threadIdx.x / kSums];
      reinterpret_cast<double*>(slot + a.layout.gradient_floats)[threadIdx.x] = of;
    }
    if (!a.gradients) return;
    const LayerArguments &first = a.layer[0], &last = a.layer[hidden()];
    for (int i = threadIdx.x; i < hidden() * H; i += kThreads) {
      slot[a.layer[i / H].bias_gradient + i % H] = bias_sums(1)[i];
    }
    if (threadIdx.x < kRegisterOutputs) {
      float of = 0.0f;
      for (int i = 0; i < kGroups; ++i) of += outputs[kRegisterOutputs * i + threadIdx.x];
      slot[last.bias_gradient + threadIdx.x] = of;
    }
    unrolled<kFirst>([&](auto i) {
      const int m = (warp() + kWarps * i) / 2, n = warp() % 2;
      if (m >= H / 16) return;
      unrolled<4>([&](auto e) {
        const int column = lane() % 4 * 4 + 2 * n + e % 2;
        slot[first.gradient + (2 * m + column / 8) * 128 + (lane() / 4 * 4 + column % 8 / 2) * 4 + e] = of_first[i][e];
      });
    });
    const int m = warp() / kAcross * kDown, n = warp() % kAcross * kRight;
    unrolled<kBetween>([&](auto l) {
      if (l + 1 >= hidden() || m >= H / 16) return;
      const LayerArguments& layer = a.layer[l + 1];
      unrolled<kDown>([&](auto i) {
        unrolled<kRight>([&](auto j) {
          const Sums& c = of_between[l][i][j];
          reinterpret_cast<float4*>(slot + layer.gradient)[((m + i) * (H / 8) + n + j) * 32 + lane()] =
              make_float4(c[0], c[1], c[2], c[3]);
        });
      });
    });
    if (warp() < H / 16) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 16 * warp() + lane() / 4 + e / 2 * 8, o = lane() % 4 * 2 + e % 2;
        slot[last.gradient + (column / 8 * 32 + o * 4 + column % 8 / 2) * 4 + column % 2] = of_last[e];
      }
    }
  }
};

template <Precision kPrecision, int H, int kGroups, int kBetween, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks) register_step(const __grid_constant__ RegisterArguments all) {
  extern __shared__ __align__(1024) unsigned char register_shared[];
  RegisterStep<kPrecision, H, kGroups, kBetween> step{all, register_shared};
  step.begin();
  for (std::int64_t i = blockIdx.x; i < all.step.tiles; i += gridDim.x) step.run(i);
  step.end();
}

}  // namespace sk::cuda
