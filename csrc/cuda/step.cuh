// A Sobolev step, tile by tile (docs/math.md, sections 3, 4 and 9): a block takes tiles of samples in turn, and all of
// a tile stays in its shared memory. Of each layer it has z, one stream (a direction's ż, or the adjoint a of an
// output's gradient) and q, what the derivatives owe the values; what else is needed of an activation is computed again
// from z.
#pragma once

#include "philox.cuh"
#include "tile.cuh"

namespace sk::cuda {

enum Term : int { kValue, kFirst };

SK_INLINE float number(const Strided& a, std::int64_t i, std::int64_t j = 0, std::int64_t k = 0) {
  return static_cast<const float*>(a.data)[i * a.stride[0] + j * a.stride[1] + k * a.stride[2]];
}

// Of a sample, from its terms
SK_INLINE void store_loss(const Arguments& step, std::int64_t sample, float of_values, float of_first) {
  const float weights[2] = {float(step.weight[kValue]), float(step.weight[kFirst])};
  float loss = weights[kValue] == 0.0f ? 0.0f : weights[kValue] * of_values;
  if (weights[kFirst] != 0.0f) loss += weights[kFirst] * of_first;
  step.terms[sample] = of_values, step.terms[step.N + sample] = of_first, step.total[sample] = loss;
}

template <Precision kPrecision>
struct Tile {
  using Op = Operand<kPrecision>;
  using T = typename Op::Type;
  static constexpr bool kInPlace = sizeof(T) == 4;

  const Arguments& step;
  float* shared;
  std::int64_t first = 0;

  // ---- Where things are ----

  SK_INLINE const LayerArguments& layer(int l) const { return step.layer[l]; }
  SK_INLINE int last() const { return step.L - 1; }
  SK_INLINE int samples() const { return step.layout.samples; }
  SK_INLINE Rows<float> floats(std::uint32_t at, int n) const { return {shared + at, n}; }
  SK_INLINE Rows<T> operand(int i, int n) const { return {operand_at(step.layout.operand[i]), n}; }
  SK_INLINE T* operand_at(std::uint32_t at) const { return reinterpret_cast<T*>(shared + at); }
  // Where a product goes that becomes operand i
  SK_INLINE float* product_at(int i) const {
    return shared + (kInPlace ? step.layout.operand[i] : step.layout.product);
  }
  // An operand that a stream of floats becomes, or of 16 bits number i
  SK_INLINE Rows<T> operand_of(std::uint32_t stream, int i, int n) const {
    return kInPlace ? Rows<T>{operand_at(stream), n} : operand(i, n);
  }
  SK_INLINE float* gradients() const {
    const Layout& layout = step.layout;
    return layout.gradients == kAbsent ? slot() : shared + layout.gradients;
  }
  SK_INLINE float* slot() const { return step.slots + std::int64_t(blockIdx.x) * step.layout.slot_floats; }
  SK_INLINE const unsigned char* packed() const {
    const std::uint32_t at = step.layout.packed;
    return at == kAbsent ? step.packed : reinterpret_cast<const unsigned char*>(shared + at);
  }
  SK_INLINE std::uint32_t* seed() const { return reinterpret_cast<std::uint32_t*>(shared + step.layout.seed); }
  SK_INLINE bool valid(int row) const { return first + row < step.N; }

  // f(row, column) for each number of a tile [samples, n], or with four columns at a time
  template <int kColumns = 1, class F>
  SK_INLINE void each(int n, F f) const {
    const int across = n / kColumns;
    int row = threadIdx.x / across, column = threadIdx.x % across;
    const int down = blockDim.x / across, right = blockDim.x % across;
#pragma unroll 1
    while (row < samples()) {
      f(row, column * kColumns);
      row += down, column += right;
      if (column >= across) column -= across, ++row;
    }
  }

  static SK_INLINE float4& four(const Rows<float>& to, int row, int column) {
    return *reinterpret_cast<float4*>(to.chunk_at(0, row, column / 4));
  }
  static SK_INLINE void put(const Rows<T>& to, int row, int column, const float (&x)[4]) {
    struct alignas(4 * sizeof(T)) Four {
      T x[4];
    };
    *reinterpret_cast<Four*>(to.at(0, row, column)) = {{Op::of(x[0]), Op::of(x[1]), Op::of(x[2]), Op::of(x[3])}};
  }

  SK_INLINE Activated activation(int l, const float4& z) const {
    const Function& of = layer(l).activation;
    return activated(of.row, of.parameters[0], of.parameters[1], z);
  }

  // f(activation of layer l, row, column): of four numbers side by side
  template <class F>
  SK_INLINE void activate(int l, F f) const {
    const Rows<float> z = floats(layer(l).z, layer(l).padded_out);
    each<4>(z.n, [&](int row, int column) { f(activation(l, four(z, row, column)), row, column); });
  }

  // ---- Once for a block ----

  SK_INLINE void begin() const {
    const Layout& layout = step.layout;
    if (layout.packed != kAbsent) {
      for (std::uint32_t i = threadIdx.x * 16; i < layout.packed_bytes; i += blockDim.x * 16) {
        copy_async(reinterpret_cast<unsigned char*>(shared + layout.packed) + i, step.packed + i);
      }
      commit_copies();
    }
    for (std::uint32_t i = threadIdx.x; i < layout.gradient_floats; i += blockDim.x) gradients()[i] = 0.0f;
    if (threadIdx.x < kSumsBytes / 4) shared[layout.sums + threadIdx.x] = 0.0f;
    if (threadIdx.x == 0) store_seed(step.directions, seed());
    if (layout.packed != kAbsent) wait_for_copies();
  }

  SK_INLINE void end() const {
    const Layout& layout = step.layout;
    float* to = slot();
    if (threadIdx.x < kSumsBytes / 4) to[layout.gradient_floats + threadIdx.x] = shared[layout.sums + threadIdx.x];
    if (layout.gradients == kAbsent) return;
    for (std::uint32_t i = threadIdx.x; i < layout.gradient_floats; i += blockDim.x) to[i] = gradients()[i];
  }

  // ---- A tile ----

  SK_INLINE void run(std::int64_t from) {
    first = from;
    load_x();
    clear_rho();
    __syncthreads();
    values_forward();
    if (step.layout.jacobian != kAbsent) load_jacobian();
#pragma unroll 1
    for (int i = 0; i < step.rounds; ++i) {
      if (step.from == From::kDirections) {
        by_tangent(i);
      } else {
        by_gradient(i);
      }
    }
    if (step.P || step.per_sample) {  // without derivatives a sample's term is 0
      store_term(kFirst);
      __syncthreads();
      clear_rho();
      __syncthreads();
    }
    value_residual();
    __syncthreads();
    store_term(kValue);
    if (step.gradients) backward<true>();
    __syncthreads();
  }

  // ---- Inputs ----

  SK_INLINE void load_x() const {
    const Rows<T> x{operand_at(step.layout.x), step.layout.inputs};
    each<4>(x.n, [&](int row, int column) {
      float of[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        of[i] = valid(row) && column + i < step.D ? number(step.x, first + row, column + i) : 0.0f;
      }
      put(x, row, column, of);
    });
  }

  // Direction or cotangent p into v, and into its operand if it is the source of a tangent. kSameLanes: who reads v
  // takes four lanes to a row too.
  template <bool kSameLanes = false>
  SK_INLINE void load_direction(int p) const {
    const Directions& from = step.directions;
    const bool cotangent = step.from == From::kCotangents, tangent = step.from == From::kDirections;
    const int n = cotangent ? step.O : step.W;
    const Rows<float> v = floats(step.layout.v, cotangent ? step.layout.outputs : step.layout.inputs);
    const Rows<T> to{operand_at(step.layout.v_operand), v.n};
    const bool given = from.distribution == Distribution::kGiven, sphere = from.distribution == Distribution::kSphere;
    const float magnitude = given ? 1.0f : float(from.magnitude);
    each<4>(v.n, [&](int row, int column) {
      float of[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (valid(row) && column < n) {
        if (given) {
#pragma unroll
          for (int i = 0; i < 4; ++i) of[i] = column + i < n ? number(from.given, p, first + row, column + i) : 0.0f;
        } else {
          const std::uint32_t sample = from.shared ? 0u : seed()[3] + std::uint32_t(first + row);
          const float4 drawn = draw(from.distribution, seed(), sample, p, column, n);
          of[0] = drawn.x, of[1] = drawn.y, of[2] = drawn.z, of[3] = drawn.w;
        }
      }
      if (!sphere) {
        for (float& x : of) x *= magnitude;
        if (tangent) put(to, row, column, of);
      }
      four(v, row, column) = make_float4(of[0], of[1], of[2], of[3]);
    });
    __syncthreads();
    if (!sphere) return;
    // four lanes to a row
    for (int i = threadIdx.x; i < 4 * samples(); i += blockDim.x) {
      const int row = i / 4;
      float total = 0.0f;
      for (int column = i % 4 * 4; column < v.n; column += 16) {
        const float4 x = four(v, row, column);
        total += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      }
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float factor = valid(row) ? magnitude / sqrtf(total) : 0.0f;
      for (int column = i % 4 * 4; column < v.n; column += 16) {
        float4& x = four(v, row, column);
        const float of[4] = {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
        x = make_float4(of[0], of[1], of[2], of[3]);
        if (tangent) put(to, row, column, of);
      }
    }
    if (!kSameLanes) __syncthreads();
  }

  // ---- Values, and tangents from v ----

  SK_INLINE void forward(int l, T* below, float* to, bool bias) const {
    const LayerArguments& of = layer(l);
    product<kPrecision>(below, of.padded_in, packed() + of.forward, of.padded_out,
                        bias ? reinterpret_cast<const float*>(packed() + of.bias_at) : nullptr, to, samples());
    __syncthreads();
  }

  SK_INLINE void values_forward() const {
    T* below = operand_at(step.layout.x);
#pragma unroll 1
    for (int l = 0; l < step.L; ++l) {
      forward(l, below, shared + layer(l).z, true);
      if (step.gradients) {
        const Rows<float> q = floats(layer(l).q, layer(l).padded_out);
        each<4>(q.n, [&](int row, int column) { four(q, row, column) = make_float4(0.0f, 0.0f, 0.0f, 0.0f); });
      }
      if (l < last()) {
        const Rows<T> h = operand(0, layer(l).padded_out);
        activate(l, [&](const Activated& s, int row, int column) { put(h, row, column, s.value); });
        below = h.data;
      }
      __syncthreads();
    }
  }

  // σ' times a stream of layer l
  SK_INLINE void put_scaled(int l, const Rows<float>& stream, const Rows<T>& to) const {
    activate(l, [&](const Activated& s, int row, int column) {
      const float4 t = four(stream, row, column);
      const float of[4] = {s.d1[0] * t.x, s.d1[1] * t.y, s.d1[2] * t.z, s.d1[3] * t.w};
      put(to, row, column, of);
    });
  }

  SK_INLINE void by_tangent(int p) const {
    load_direction(p);
    T* below = operand_at(step.layout.v_operand);
#pragma unroll 1
    for (int l = 0; l < step.L; ++l) {
      const Rows<float> z_dot = floats(layer(l).tangent, layer(l).padded_out);
      forward(l, below, z_dot.data, false);
      if (l == last()) break;
      const Rows<T> h_dot = operand(0, z_dot.n);
      put_scaled(l, z_dot, h_dot);
      __syncthreads();
      below = h_dot.data;
    }
    tangent_residual(p);
    __syncthreads();
    if (owes_gradients()) backward<false>(p);
    __syncthreads();
  }

  // ---- Residuals ----

  SK_INLINE float sample_weight(Term term, int row) const {
    return step.sample_weight.data ? number(step.sample_weight, term, first + row) : 1.0f;
  }
  SK_INLINE float output_weight(int o) const { return step.output_weight.data ? number(step.output_weight, o) : 1.0f; }
  SK_INLINE float derivative_weight(int p, int row, int i) const {
    return step.derivative_weight.data ? number(step.derivative_weight, p, first + row, i) : 1.0f;
  }

  // Adds to the term, unless told not to, and gives the slope; a term or a residual of weight 0 may have any target,
  // also NaN
  SK_INLINE float slope(Term term, int row, int column, float r, float weight, bool added = true) const {
    const Function& loss = step.loss[term];
    weight *= sample_weight(term, row);
    if (weight == 0.0f) r = 0.0f;
    const Residual<float> rho = residual(loss.row, loss.parameters[0], loss.parameters[1], r);
    if (added) shared[step.layout.rho + row * step.layout.rho_columns + column] += rho.value * weight;
    return step.factor[term] == 0.0f ? 0.0f : step.factor[term] * rho.slope * weight;
  }

  SK_INLINE void clear_rho() const {
    for (int i = threadIdx.x; i < samples() * step.layout.rho_columns; i += blockDim.x) {
      shared[step.layout.rho + i] = 0.0f;
    }
  }

  // Of each sample, for the loss after the derivatives; or added to the block's sums, one for each warp.
  SK_INLINE void store_term(Term term) const {
    const int row = threadIdx.x, columns = step.layout.rho_columns;
    if (!step.total || row / 32 >= (samples() + 31) / 32) return;
    float total = 0.0f;
    for (int i = 0; row < samples() && i < columns - 1; ++i) total += shared[step.layout.rho + row * columns + i];
    if (step.per_sample) {
      if (row >= samples() || !valid(row)) return;
      float& of_first = step.terms[step.N + first + row];
      total *= float(step.share[term]);
      if (term == kFirst) {
        of_first = total;
      } else {
        store_loss(step, first + row, total, of_first);
      }
      return;
    }
    for (int apart = 16; apart; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
    if (row % 32 == 0) reinterpret_cast<double*>(shared + step.layout.sums)[term * kSums + row / 32] += total;
  }

  // z̄ of the last layer, into `tangent` and as an operand
  SK_INLINE void value_residual() const {
    const int l = last(), n = layer(l).padded_out;
    const Rows<float> q = floats(layer(l).q, n), z_bar = floats(layer(l).tangent, n);
    const Rows<T> to = operand(1, n);
    const Target& target = step.target[kValue];
    activate(l, [&](const Activated& s, int row, int column) {
      float back[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int i = 0, o = column; i < 4; ++i, ++o) {
        if (!valid(row) || o >= step.O || target.kind == TargetKind::kNone) continue;
        const float r = s.value[i] - number(target.data, first + row, o);
        back[i] = s.d1[i] * slope(kValue, row, o, r, output_weight(o));
      }
      if (!step.gradients) return;
      const float4 owed = four(q, row, column);
      const float of[4] = {back[0] + owed.x, back[1] + owed.y, back[2] + owed.z, back[3] + owed.w};
      put(to, row, column, of);
      four(z_bar, row, column) = make_float4(of[0], of[1], of[2], of[3]);
    });
  }

  // z̄̇ of the last layer as an operand, and what it owes the values
  SK_INLINE void tangent_residual(int p) const {
    const int l = last(), n = layer(l).padded_out;
    const Rows<float> z_dot = floats(layer(l).tangent, n), q = floats(layer(l).q, n);
    const Rows<T> to = operand(1, n);
    activate(l, [&](const Activated& s, int row, int column) {
      const float4 t = four(z_dot, row, column);
      float a[4] = {0.0f, 0.0f, 0.0f, 0.0f}, back[4];
#pragma unroll
      for (int i = 0, o = column; i < 4; ++i, ++o) {
        if (!valid(row) || o >= step.O) continue;
        const float weight = output_weight(o) * derivative_weight(p, row, o);
        a[i] = slope(kFirst, row, o, s.d1[i] * (&t.x)[i] - tangent_target(p, row, o), weight);
      }
      if (!step.gradients) return;
      float4 owed = four(q, row, column);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        back[i] = s.d1[i] * a[i];
        (&owed.x)[i] += s.d2[i] * (&t.x)[i] * a[i];
      }
      four(q, row, column) = owed;
      put(to, row, column, back);
    });
  }

  SK_INLINE void load_jacobian() const {
    const int n = step.O * step.W;
    for (int i = threadIdx.x; i < samples() * n; i += blockDim.x) {
      const int row = i / n, o = i % n / step.W, d = i % step.W;
      shared[step.layout.jacobian + d * step.layout.jacobian_columns + row * step.O + o] =
          valid(row) ? number(step.target[kFirst].data, first + row, o, d) : 0.0f;
    }
  }

  SK_INLINE float jacobian(int row, int o, int d) const {
    const std::uint32_t near = step.layout.jacobian;
    return near == kAbsent ? number(step.target[kFirst].data, first + row, o, d)
                           : shared[near + d * step.layout.jacobian_columns + row * step.O + o];
  }

  // (Df(x)[v_p])_o
  SK_INLINE float tangent_target(int p, int row, int o) const {
    const Target& target = step.target[kFirst];
    if (target.kind == TargetKind::kProjected) return number(target.data, p, first + row, o);
    const Rows<float> v = floats(step.layout.v, step.layout.inputs);
    float total = 0.0f;
#pragma unroll 1
    for (int d = 0; d < step.W; ++d) total = fmaf(jacobian(row, o, d), *v.at(0, row, d), total);
    return total;
  }

  // (Df(x)ᵀu_p)_d
  SK_INLINE float gradient_target(int p, int row, int d) const {
    const Target& target = step.target[kFirst];
    if (target.kind == TargetKind::kProjected) return number(target.data, p, first + row, d);
    const Rows<float> u = floats(step.layout.v, step.layout.outputs);
    float total = 0.0f;
#pragma unroll 1
    for (int o = 0; o < step.O; ++o) total = fmaf(number(target.data, first + row, o, d), *u.at(0, row, o), total);
    return total;
  }

  // ---- The way back ----

  // Whether derivatives have one; also of weight 0, where that of given vectors is 0
  SK_INLINE bool owes_gradients() const { return step.gradients && (step.factor[kFirst] != 0.0f || step.dgiven); }

  SK_INLINE void add_gradient(int l, T* z_bar, T* h) const {
    const LayerArguments& of = layer(l);
    add_outer<kPrecision>(z_bar, of.padded_out, h, of.padded_in, samples(), gradients() + of.gradient);
  }

  // The adjoint of what comes into layer l
  SK_INLINE void pull(int l, T* z_bar, float* to) const {
    const LayerArguments& of = layer(l);
    product<kPrecision>(z_bar, of.padded_out, packed() + of.backward, of.padded_in, nullptr, to, samples());
    __syncthreads();
  }

  // Of the values, or of tangent p, from the adjoint of the last layer's z in operand 1; operands 1 and 2 take turns.
  template <bool kValues>
  SK_INLINE void backward(int p = 0) const {
    const Layout& layout = step.layout;
    int now = 1;
#pragma unroll 1
    for (int l = last(); l > 0; --l) {
      T* z_bar = operand(now, 0).data;
      now = 3 - now;
      pull(l, z_bar, product_at(now));
      const LayerArguments& below = layer(l - 1);
      const Rows<T> h = operand_of(kValues ? below.z : below.tangent, 0, below.padded_out);
      through<kValues>(l - 1, product_at(now), h, operand(now, h.n));
      __syncthreads();
      add_gradient(l, z_bar, h.data);
      if (kValues) add_bias_gradient(l);
      if (kInPlace) __syncthreads();  // the next product goes where z̄ was
    }
    T* z_bar = operand(now, 0).data;
    add_gradient(0, z_bar, operand_at(kValues ? layout.x : layout.v_operand));
    if (kValues) add_bias_gradient(0);
    if (float* to = kValues ? step.dx : step.dgiven) {
      store_gradient(z_bar, product_at(3 - now), to, p, kValues ? step.D : step.W);
    }
  }

  // At layer l: what it gave as an operand once more, and from its adjoint that of its z
  template <bool kValues>
  SK_INLINE void through(int l, float* product, const Rows<T>& h, const Rows<T>& z_bar) const {
    const int n = layer(l).padded_out;
    const Rows<float> adjoint{product, n}, q = floats(layer(l).q, n);
    const Rows<float> stream = floats(layer(l).tangent, n);
    activate(l, [&](const Activated& s, int row, int column) {
      const float4 a = four(adjoint, row, column), t = kValues ? float4{} : four(stream, row, column);
      float4 owed = four(q, row, column);
      float of[4], back[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        back[i] = s.d1[i] * (&a.x)[i] + (kValues ? (&owed.x)[i] : 0.0f);
        of[i] = kValues ? s.value[i] : s.d1[i] * (&t.x)[i];
        (&owed.x)[i] += s.d2[i] * (&t.x)[i] * (&a.x)[i];
      }
      put(h, row, column, of), put(z_bar, row, column, back);
      if (kValues) {
        four(stream, row, column) = make_float4(back[0], back[1], back[2], back[3]);
      } else {
        four(q, row, column) = owed;
      }
    });
  }

  // Sums over the tile of z̄, which lies in `tangent`
  SK_INLINE void add_bias_gradient(int l) const {
    const Rows<float> z_bar = floats(layer(l).tangent, layer(l).padded_out);
    for (int i = threadIdx.x; i < z_bar.n; i += blockDim.x) {
      float total = 0.0f;
      for (int row = 0; row < samples(); ++row) total += *z_bar.at(0, row, i);
      gradients()[layer(l).bias_gradient + i] += total;
    }
  }

  // Of x, or of direction p: [P, N, columns]
  SK_INLINE void store_gradient(T* z_bar, float* product, float* to, int p, int columns) const {
    pull(0, z_bar, product);
    const Rows<float> gradient{product, step.layout.inputs};
    to += (p * step.N + first) * columns;
    each(gradient.n, [&](int row, int d) {
      if (valid(row) && d < columns) to[std::int64_t(row) * columns + d] = step.common * *gradient.at(0, row, d);
    });
  }

  // ---- The gradient of one number, a cotangent's or output i, and its adjoint as a tangent along it ----

  SK_INLINE void by_gradient(int i) const {
    const Layout& layout = step.layout;
    const bool cotangent = step.from == From::kCotangents;
    int now = 0;
    {
      if (cotangent) load_direction(i);
      const int n = layer(last()).padded_out;
      const Rows<float> u = floats(layout.v, n), a = floats(layer(last()).tangent, n);
      each<4>(n, [&](int row, int column) {
        const int o = valid(row) ? i - column : -1;
        four(a, row, column) = cotangent ? four(u, row, column) : make_float4(o == 0, o == 1, o == 2, o == 3);
      });
    }
#pragma unroll 1
    for (int l = last(); l >= 0; --l) {
      const Rows<T> delta = operand(now, layer(l).padded_out);
      now = 1 - now;
      put_scaled(l, floats(layer(l).tangent, delta.n), delta);
      __syncthreads();
      pull(l, delta.data, l ? shared + layer(l - 1).tangent : product_at(now));
    }
    if (cotangent) {
      gradient_residual(i, product_at(now));
    } else {
      projected_residuals(i, product_at(now));
    }
    __syncthreads();
    if (owes_gradients()) gradient_backward(i);
    __syncthreads();
  }

  // Of output o along each direction; four lanes to a row
  SK_INLINE void projected_residuals(int o, float* gradient) const {
    const Layout& layout = step.layout;
    const int n = layout.inputs;
    const Rows<float> g{gradient, n}, v = floats(layout.v, n), g_bar = floats(layout.adjoint, n);
    const Target& target = step.target[kFirst];
    const bool dense = target.kind == TargetKind::kDense;
    if (step.gradients) {
      each<4>(n, [&](int row, int column) { four(g_bar, row, column) = make_float4(0.0f, 0.0f, 0.0f, 0.0f); });
    }
#pragma unroll 1
    for (int p = 0; p < step.P; ++p) {
      load_direction<true>(p);
      for (int i = threadIdx.x; i < 4 * samples(); i += blockDim.x) {
        const int row = i / 4;
        float r = 0.0f;
        for (int column = i % 4 * 4; column < n; column += 16) {
          const float4 x = four(v, row, column), y = four(g, row, column);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if ((&x.x)[k] == 0.0f) continue;  // of a basis all but one, and of rows and columns that are not there
            r = fmaf((&y.x)[k] - (dense ? jacobian(row, o, column + k) : 0.0f), (&x.x)[k], r);
          }
        }
        r += __shfl_xor_sync(~0u, r, 1);
        r += __shfl_xor_sync(~0u, r, 2);
        float a = 0.0f;
        if (valid(row)) {
          if (!dense) r -= number(target.data, p, first + row, o);
          a = slope(kFirst, row, o, r, output_weight(o) * derivative_weight(p, row, o), i % 4 == 0);
        }
        for (int column = i % 4 * 4; step.gradients && column < n; column += 16) {
          const float4 x = four(v, row, column);
          float4& y = four(g_bar, row, column);
          y = make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
        }
      }
      __syncthreads();
    }
    if (!step.gradients) return;
    const Rows<T> to{operand_at(layout.v_operand), n};
    each<4>(n, [&](int row, int column) {
      const float4 x = four(g_bar, row, column);
      const float of[4] = {x.x, x.y, x.z, x.w};
      put(to, row, column, of);
    });
  }

  SK_INLINE void gradient_residual(int r, float* gradient) const {
    const Rows<float> g{gradient, step.layout.inputs};
    const Rows<T> to{operand_at(step.layout.v_operand), g.n};
    const bool basis = step.directions.distribution == Distribution::kBasis;
    each(g.n, [&](int row, int d) {
      float g_bar = 0.0f;
      if (valid(row) && d < step.W) {
        const float weight = (basis ? output_weight(r) : 1.0f) * derivative_weight(r, row, d);
        g_bar = slope(kFirst, row, d, *g.at(0, row, d) - gradient_target(r, row, d), weight);
      }
      if (step.gradients) *to.at(0, row, d) = Op::of(g_bar);
    });
  }

  // A tangent along ḡ against δ, which is computed again: operands 0 and 1 take turns as ḣ, 2 is δ. At its end is the
  // gradient of cotangent r.
  SK_INLINE void gradient_backward(int r) const {
    T* below = operand_at(step.layout.v_operand);
#pragma unroll 1
    for (int l = 0; l < step.L; ++l) {
      const int n = layer(l).padded_out;
      const Rows<float> z_dot{product_at(l % 2), n}, q = floats(layer(l).q, n), stream = floats(layer(l).tangent, n);
      const Rows<T> h_dot = operand(l % 2, n), delta = operand_of(layer(l).tangent, 2, n);
      forward(l, below, z_dot.data, false);
      activate(l, [&](const Activated& s, int row, int column) {
        const float4 t = four(z_dot, row, column), a = four(stream, row, column);
        float4 owed = four(q, row, column);
        float of[4], back[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          of[i] = s.d1[i] * (&t.x)[i], back[i] = s.d1[i] * (&a.x)[i];
          (&owed.x)[i] += s.d2[i] * (&t.x)[i] * (&a.x)[i];
        }
        put(delta, row, column, back);
        if (l < last()) put(h_dot, row, column, of);
        four(q, row, column) = owed;
        if (l < last() || !step.dgiven || !valid(row)) return;
        float* to = step.dgiven + (r * step.N + first + row) * step.O;
#pragma unroll
        for (int i = 0, o = column; i < 4 && o < step.O; ++i, ++o) to[o] = step.common * of[i];
      });
      __syncthreads();
      add_gradient(l, delta.data, below);
      if (kInPlace) __syncthreads();  // the next product goes where `below` was
      below = h_dot.data;
    }
  }
};

}  // namespace sk::cuda
