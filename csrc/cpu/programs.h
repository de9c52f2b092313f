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

// R registers of a sum of products
template <class T, int R>
void sum_products(const SumOfProducts& sum, const Product* terms, T* const* at) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> total[R];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) total[i] = Vec<T>(0.0);
  for (std::int64_t t = sum.begin; t < sum.scaled; ++t) {
    const T *a = at[terms[t].a], *b = at[terms[t].b];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) total[i] = total[i] + Vec<T>::load(a + i * kLanes) * Vec<T>::load(b + i * kLanes);
  }
  for (std::int64_t t = sum.scaled; t < sum.end; ++t) {
    const T *a = at[terms[t].a], *b = at[terms[t].b];
    const Vec<T> c = coefficient<T>(terms[t]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      total[i] = total[i] + c * Vec<T>::load(a + i * kLanes) * Vec<T>::load(b + i * kLanes);
    }
  }
  T* to = at[sum.to];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) total[i].store(to + i * kLanes);
}

template <class T>
using SumProducts = void (*)(const SumOfProducts&, const Product*, T* const*);
template <class T, int... I>
SumProducts<T> sum_products_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr SumProducts<T> kTable[] = {&sum_products<T, I + 1>...};
  return kTable[R - 1];
}

// A program on R registers of each slot
template <class T>
void execute(const Program& program, std::int64_t R, T* const* slots) {
  const auto sum = sum_products_of<T>(R, RowCounts{});
  for (std::int64_t i = 0; i < program.count; ++i) sum(program.sums[i], program.terms, slots);
}
