// Sums of products of numbers in slots, which are what an activation and a loss do with named derivatives (../jets.h).
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
SK_INLINE Vec<T> coefficient(const Product& term) {
  if constexpr (std::is_same_v<T, float>) {
    return typename Vec<T>::native{} + term.narrow;
  } else {
    return Vec<T>(term.wide);
  }
}

// R registers of a sum of products, from number `first` of each slot on
template <class T, int R>
void sum_products(const SumOfProducts& sum, const Product* terms, T* const* at, std::int64_t first) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> total[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) total[i] = Vec<T>(0.0);
  for (std::int64_t t = sum.begin; t < sum.scaled; ++t) {
    const T *a = at[terms[t].a] + first, *b = at[terms[t].b] + first;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) total[i] = total[i] + Vec<T>::load(a + i * kLanes) * Vec<T>::load(b + i * kLanes);
  }
  for (std::int64_t t = sum.scaled; t < sum.end; ++t) {
    const T *a = at[terms[t].a] + first, *b = at[terms[t].b] + first;
    const Vec<T> c = coefficient<T>(terms[t]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      total[i] = total[i] + c * Vec<T>::load(a + i * kLanes) * Vec<T>::load(b + i * kLanes);
    }
  }
  T* to = at[sum.to] + first;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) total[i].store(to + i * kLanes);
}

template <class T>
using SumProducts = void (*)(const SumOfProducts&, const Product*, T* const*, std::int64_t);
template <class T, int... I>
SumProducts<T> sum_products_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr SumProducts<T> kTable[] = {&sum_products<T, I + 1>...};
  return kTable[R - 1];
}

// A sum of so few products that it is made register by register, with all that is known of its terms in others
template <class T, int kTerms, bool kScaled>
void sum_few(const SumOfProducts& sum, const Product* terms, T* const* at, std::int64_t R) {
  constexpr int kLanes = Vec<T>::kLanes;
  const T *a[kTerms], *b[kTerms];
  Vec<T> c[kTerms];
#pragma GCC unroll 4
  for (int t = 0; t < kTerms; ++t) {
    a[t] = at[terms[t].a], b[t] = at[terms[t].b];
    if (kScaled) c[t] = coefficient<T>(terms[t]);
  }
  T* to = at[sum.to];
  for (std::int64_t i = 0; i < R * kLanes; i += kLanes) {
    Vec<T> total(0.0);
#pragma GCC unroll 4
    for (int t = 0; t < kTerms; ++t) {
      const Vec<T> x = Vec<T>::load(a[t] + i), y = Vec<T>::load(b[t] + i);
      total = total + (kScaled ? c[t] * x : x) * y;
    }
    total.store(to + i);
  }
}

template <class T, bool kScaled>
constexpr SumProducts<T> kSumFew[] = {&sum_few<T, 1, kScaled>, &sum_few<T, 2, kScaled>, &sum_few<T, 3, kScaled>,
                                      &sum_few<T, 4, kScaled>};

// A program on R registers of each slot
template <class T>
void execute(const Program& program, std::int64_t R, T* const* slots) {
  const RowBlocks blocks(R);
  for (const SumOfProducts *sum = program.sums, *end = sum + program.count; sum < end; ++sum) {
    const std::int64_t count = sum->end - sum->begin;
    if (0 < count && count <= 4) {
      (sum->scaled == sum->end ? kSumFew<T, false> : kSumFew<T, true>)[count - 1](*sum, program.terms + sum->begin,
                                                                                  slots, R);
      continue;
    }
    for (std::int64_t b = 0; b < blocks.blocks; ++b) {
      const std::int64_t row = blocks.begin(b);
      sum_products_of<T>(blocks.begin(b + 1) - row, RowCounts{})(*sum, program.terms, slots, row * kPanel<T>);
    }
  }
}

// The common programs without a table: those of values, tangents and second derivatives along P directions, in slots as
// of any program, of which z has no second derivatives where it is not `curved`.

// h₁ = σ' z₁, h₂ = σ' z₂ + σ'' z₁²; `back`: and g₁, g₂, the same of σ'
template <class T>
void along_forward(T* const* z, std::int64_t P, bool curved, bool back, T* const* sigma, std::int64_t R) {
  using V = Vec<T>;
  T *const *h = z + 1 + (curved ? 2 : 1) * P, *const *g = h + 1 + 2 * P;
  for (std::int64_t p = 1; p <= P; ++p) {
    const T *z1 = z[p], *z2 = curved ? z[P + p] : nullptr;
    T *h1 = h[p], *h2 = h[P + p], *g1 = back ? g[p] : nullptr, *g2 = back ? g[P + p] : nullptr;
    for (std::int64_t i = 0; i < R * kPanel<T>; i += kPanel<T>) {
      const V d1 = V::load(sigma[1] + i), d2 = V::load(sigma[2] + i), a = V::load(z1 + i), square = a * a;
      const V b = z2 ? V::load(z2 + i) : V(0.0);
      (d1 * a).store(h1 + i);
      (d1 * b + d2 * square).store(h2 + i);
      if (!back) continue;
      (d2 * a).store(g1 + i);
      (d2 * b + V::load(sigma[3] + i) * square).store(g2 + i);
    }
  }
}

// z̄ = σ' h̄ + Σ (g₁ h̄₁ + g₂ h̄₂), z̄₁ = σ' h̄₁ + 2 g₁ h̄₂, z̄₂ = σ' h̄₂
template <class T>
void along_adjoint(T* const* bar, std::int64_t P, bool curved, std::int64_t R) {
  using V = Vec<T>;
  T *const *g = bar + 1 + 2 * P, *const *z = g + 1 + 2 * P;
  const std::int64_t count = R * kPanel<T>;
  for (std::int64_t i = 0; i < count; i += kPanel<T>) (V::load(g[0] + i) * V::load(bar[0] + i)).store(z[0] + i);
  for (std::int64_t p = 1; p <= P; ++p) {
    const T *bar1 = bar[p], *bar2 = bar[P + p], *kept1 = g[p], *kept2 = g[P + p];
    T *z1 = z[p], *z2 = curved ? z[P + p] : nullptr;
    for (std::int64_t i = 0; i < count; i += kPanel<T>) {
      const V d1 = V::load(g[0] + i), b1 = V::load(bar1 + i), b2 = V::load(bar2 + i), g1 = V::load(kept1 + i);
      (V::load(z[0] + i) + g1 * b1 + V::load(kept2 + i) * b2).store(z[0] + i);
      (d1 * b1 + V(2.0) * g1 * b2).store(z1 + i);
      if (z2) (d1 * b2).store(z2 + i);
    }
  }
}
