// A register of lanes of T, in the compiler's portable vector types. One source serves every instruction set.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using type = std::int32_t;
};
template <>
struct Bits<double> {
  using type = std::int64_t;
};

template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / int(sizeof(T));
  typedef T native __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  typedef typename Bits<T>::type mask __attribute__((vector_size(kVectorBytes)));

  native v;

  SK_INLINE Vec() = default;
  SK_INLINE Vec(native n) : v(n) {}
  SK_INLINE explicit Vec(double s) : v(native{} + T(s)) {}
  SK_INLINE static Vec load(const T* p) { return Vec(native(*reinterpret_cast<const unaligned*>(p))); }
  SK_INLINE static Vec numbers() {  // 0, 1, 2, ...
    Vec n;
    for (int i = 0; i < kLanes; ++i) n.v[i] = T(i);
    return n;
  }
  SK_INLINE void store(T* p) const { *reinterpret_cast<unaligned*>(p) = v; }

  friend SK_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend SK_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend SK_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend SK_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend SK_INLINE Vec operator-(Vec a) { return -a.v; }
  friend SK_INLINE mask operator>(Vec a, Vec b) { return a.v > b.v; }
  friend SK_INLINE mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend SK_INLINE mask operator!=(Vec a, Vec b) { return a.v != b.v; }
};

// Lanes of double from as many numbers of another type, and back
template <class T>
SK_INLINE Vec<double> load_wide(const T* p) {
  typedef T some __attribute__((vector_size(Vec<double>::kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const some*>(p), typename Vec<double>::native);
}
template <class T>
SK_INLINE void store_narrow(Vec<double> a, T* p) {
  typedef T some __attribute__((vector_size(Vec<double>::kLanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  *reinterpret_cast<some*>(p) = __builtin_convertvector(a.v, some);
}

template <class T>
SK_INLINE Vec<T> where(typename Vec<T>::mask m, Vec<T> a, Vec<T> b) {
  return m ? a.v : b.v;
}

template <class T, int S, int... J>
SK_INLINE typename Vec<T>::native shifted(Vec<T> a, std::integer_sequence<int, J...>) {
  return __builtin_shuffle(a.v, typename Vec<T>::mask{((J + S) % Vec<T>::kLanes)...});
}

// Halves are added to each other: few steps, in which the lanes do not wait for one another
template <class T, int S = Vec<T>::kLanes / 2>
SK_INLINE T sum(Vec<T> a) {
  if constexpr (S == 0) {
    return a.v[0];
  } else {
    return sum<T, S / 2>(Vec<T>(a.v + shifted<T, S>(a, std::make_integer_sequence<int, Vec<T>::kLanes>{})));
  }
}

// One stage of a transposition: lane j of row i is exchanged with lane j^S of row i^S.
template <class T, int S, int... J>
SK_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, J...>) {
  constexpr int kLanes = Vec<T>::kLanes;
  using Mask = typename Vec<T>::mask;
  const auto low = __builtin_shuffle(a.v, b.v, Mask{((J & S) ? J - S + kLanes : J)...});
  const auto high = __builtin_shuffle(a.v, b.v, Mask{((J & S) ? J + kLanes : J + S)...});
  a.v = low;
  b.v = high;
}

template <class T, int S>
SK_INLINE void transpose_stages(Vec<T>* r) {
  constexpr int kLanes = Vec<T>::kLanes;
  if constexpr (S < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & S)) exchange<T, S>(r[i], r[i + S], std::make_integer_sequence<int, kLanes>{});
    }
    transpose_stages<T, 2 * S>(r);
  }
}

// dst[j][i] = src[i][j] for i < rows, 0 for the rest of the kLanes x kLanes square.
template <class T>
SK_INLINE void transpose_square(const T* src, std::int64_t ld_src, std::int64_t rows, T* dst, std::int64_t ld_dst) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> r[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) r[i] = i < rows ? Vec<T>::load(src + i * ld_src) : Vec<T>(0.0);
  transpose_stages<T, 1>(r);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) r[i].store(dst + i * ld_dst);
}
