// Random directions of one tile, drawn where they are used: Philox-4x32-10 keyed by (seed; sample, direction, four
// columns, offset), so every backend draws the same integers. The formulas are those of
// `sobolev_kernels/math/directions.py`; samples lie along the registers.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// Four words of each sample of a panel
template <class T>
struct Words {
  static constexpr int kBytes = 4 * kPanel<T>;
  typedef std::uint32_t word __attribute__((vector_size(kBytes)));
  typedef std::uint64_t pair __attribute__((vector_size(kBytes)));
  word w[4];
};

// The lower words of pairs times b, all 64 bits. Compilers multiply all of both numbers, at several times the cost.
template <class Pair>
SK_INLINE Pair multiply_lower(Pair a, std::uint32_t b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Pair) == 64) return Pair(_mm512_maskz_mul_epu32(0xFF, __m512i(a), _mm512_set1_epi64(b)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Pair) == 32) return Pair(_mm256_mul_epu32(__m256i(a), _mm256_set1_epi64x(b)));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(Pair) == 16) return Pair(_mm_mul_epu32(__m128i(a), _mm_set1_epi64x(b)));
#endif
  return (a & 0xFFFFFFFFu) * b;
}

// Of `count` blocks from `block` on. They wait for nobody else: each round of one waits for the multiplies of the last.
template <class T, int count = 1>
SK_INLINE void philox(const Directions& directions, std::int64_t sample, std::uint32_t p, std::uint32_t block,
                      Words<T> (&c)[count]) {
  using Word = typename Words<T>::word;
  using Pair = typename Words<T>::pair;
  constexpr std::uint64_t kLower = 0xFFFFFFFFu;
  Word samples{};
  const auto first = std::uint32_t(directions.place >> 32) + std::uint32_t(sample);
  for (int m = 0; m < kPanel<T> && !directions.shared; ++m) samples[m] = first + std::uint32_t(m);
  const auto offset = std::uint32_t(directions.place);
#pragma GCC unroll 2
  for (int i = 0; i < count; ++i) c[i] = {{samples, Word{} + p, Word{} + (block + i), Word{} + offset}};
  std::uint32_t k0 = std::uint32_t(directions.seed), k1 = std::uint32_t(directions.seed >> 32);
  // high ^ the word after ^ key, and low, of the products of two words
  const auto turn = [](Word& from, Word& after, std::uint32_t by, std::uint32_t key) {
    const Pair even = multiply_lower(Pair(from), by), odd = multiply_lower(Pair(from) >> 32, by);
    after ^= Word((even >> 32) | (odd & ~kLower)) ^ key;
    from = Word((even & kLower) | (odd << 32));
  };
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
#pragma GCC unroll 2
    for (int i = 0; i < count; ++i) {
      turn(c[i].w[2], c[i].w[1], 0xCD9E8D57u, k0);
      turn(c[i].w[0], c[i].w[3], 0xD2511F53u, k1);
      c[i] = {{c[i].w[1], c[i].w[2], c[i].w[3], c[i].w[0]}};
    }
  }
}

// The upper 23 bits as the middle of one of 2^23 intervals of (0, 1): exact in float32
template <class T>
SK_INLINE Vec<T> uniform(typename Words<T>::word w) {
  typedef std::int32_t whole __attribute__((vector_size(Words<T>::kBytes)));
  const Vec<T> number = __builtin_convertvector(whole(w >> 9), typename Vec<T>::native);
  return (number + Vec<T>(0.5)) * Vec<T>(1.0 / 8388608.0);
}

// v[d ... d + 4 * count or D][kPanel] of independent standard normals, by Box and Muller
template <class T, int count>
SK_INLINE void draw_normal(const Directions& directions, std::int64_t sample, std::int64_t p, std::int64_t d,
                           std::int64_t D, T* v) {
  Words<T> c[count];
  philox<T, count>(directions, sample, std::uint32_t(p), std::uint32_t(d / 4), c);
  for (std::int64_t pair = 0; pair < 2 * count && d + 2 * pair < D; ++pair) {
    const Words<T>& words = c[pair / 2];
    const Vec<T> radius = sqrt(Vec<T>(-2.0) * log(uniform<T>(words.w[pair % 2 * 2])));
    const Vec<T> angle = Vec<T>(6.283185307179586) * (uniform<T>(words.w[pair % 2 * 2 + 1]) - Vec<T>(0.5));
    T* to = v + (d + 2 * pair) * kPanel<T>;
    const SinCos<T> turned = sincos_near(angle);
    (radius * turned.cos).store(to);
    if (d + 2 * pair + 1 < D) (radius * turned.sin).store(to + kPanel<T>);
  }
}

template <class T>
void draw_normal(const Directions& directions, std::int64_t sample, std::int64_t p, std::int64_t D, T* v) {
  std::int64_t d = 0;
  for (; d + 4 < D; d += 8) draw_normal<T, 2>(directions, sample, p, d, D, v);
  if (d < D) draw_normal<T, 1>(directions, sample, p, d, D, v);
}

template <class T>
void draw_rademacher(const Directions& directions, std::int64_t sample, std::int64_t p, std::int64_t D, T* v) {
  for (std::int64_t d = 0; d < D; d += 4) {
    Words<T> c[1];
    philox<T>(directions, sample, std::uint32_t(p), std::uint32_t(d / 4), c);
    for (std::int64_t i = 0; i < 4 && d + i < D; ++i) {
      for (int m = 0; m < kPanel<T>; ++m) v[(d + i) * kPanel<T> + m] = (c[0].w[i][m] >> 31) ? T(1) : T(-1);
    }
  }
}

template <class T>
void draw_coordinate(const Directions& directions, std::int64_t sample, std::int64_t p, std::int64_t D, T* v) {
  Words<T> c[1];
  philox<T>(directions, sample, std::uint32_t(p), 0, c);
  for (std::int64_t d = 0; d < D; ++d) {
    for (int m = 0; m < kPanel<T>; ++m) {
      v[d * kPanel<T> + m] = std::int64_t((std::uint64_t(c[0].w[0][m]) * std::uint64_t(D)) >> 32) == d ? T(1) : T(0);
    }
  }
}

template <class T>
SK_INLINE Vec<T> dot(const T* a, const T* b, std::int64_t D) {
  Vec<T> total(0.0);
  for (std::int64_t d = 0; d < D; ++d) {
    total = total + Vec<T>::load(a + d * kPanel<T>) * Vec<T>::load(b + d * kPanel<T>);
  }
  return total;
}

template <class T>
void normalise(T* v, std::int64_t D) {
  const Vec<T> inverse = Vec<T>(1.0) / sqrt(dot(v, v, D));
  for (std::int64_t d = 0; d < D; ++d) (Vec<T>::load(v + d * kPanel<T>) * inverse).store(v + d * kPanel<T>);
}

// Gram and Schmidt on normals give the uniform distribution on orthonormal frames; twice is enough for rounding.
// `frame` holds the directions before p of this panel, [p][D][kPanel].
template <class T>
void orthonormalise(const T* frame, std::int64_t p, std::int64_t D, T* v) {
  for (int pass = 0; pass < 2; ++pass) {
    normalise(v, D);
    for (std::int64_t q = 0; q < p; ++q) {
      const T* e = frame + q * D * kPanel<T>;
      const Vec<T> along = dot(e, v, D);
      for (std::int64_t d = 0; d < D; ++d) {
        T* to = v + d * kPanel<T>;
        (Vec<T>::load(to) - along * Vec<T>::load(e + d * kPanel<T>)).store(to);
      }
    }
  }
  normalise(v, D);
}

// Direction p of the kPanel samples from `sample` on: v[D][kPanel].
// `frame` is the panel's room for all P directions if they are orthonormal, else unused.
template <class T>
void draw_direction(const Directions& directions, std::int64_t sample, std::int64_t p, std::int64_t D, T* v, T* frame) {
  switch (directions.distribution) {
    case Distribution::kSphere:
      draw_normal(directions, sample, p, D, v);
      normalise(v, D);
      break;
    case Distribution::kNormal:
      draw_normal(directions, sample, p, D, v);
      break;
    case Distribution::kRademacher:
      draw_rademacher(directions, sample, p, D, v);
      break;
    case Distribution::kCoordinate:
      draw_coordinate(directions, sample, p, D, v);
      break;
    case Distribution::kOrthonormal:
      draw_normal(directions, sample, p, D, v);
      orthonormalise(frame, p, D, v);
      for (std::int64_t i = 0; i < D * kPanel<T>; ++i) frame[p * D * kPanel<T> + i] = v[i];
      break;
    case Distribution::kBasis:
      for (std::int64_t i = 0; i < D * kPanel<T>; ++i) v[i] = i / kPanel<T> == p ? T(1) : T(0);
      break;
    case Distribution::kGiven:
      break;
    default:
      throw std::invalid_argument("a distribution that this core does not draw");
  }
  if (directions.magnitude == 1) return;
  for (std::int64_t i = 0; i < D * kPanel<T>; ++i) v[i] *= T(directions.magnitude);
}

// Rows [M][ld] of n numbers and the rest 0, and panels, of the samples of an array [N, n] from `first` on
template <class T>
void load_rows(const Strided& from, std::int64_t first, std::int64_t M, std::int64_t n, std::int64_t ld, T* rows,
               T* panels) {
  for (std::int64_t m = 0; m < M; ++m) {
    const T* row = static_cast<const T*>(from.data) + (first + m) * from.stride[0];
    for (std::int64_t d = 0; d < n; ++d) rows[m * ld + d] = row[d * from.stride[1]];
    for (std::int64_t d = n; d < ld; ++d) rows[m * ld + d] = T(0);
  }
  rows_to_panels(rows, ld, n, M, panels);
}

// Direction or cotangent p of n numbers, given or drawn, of a panel's samples from `first` on; `frame` as above
template <class T>
void load_vector(const Directions& directions, std::int64_t first, std::int64_t M, std::int64_t p, std::int64_t n,
                 std::int64_t ld, T* rows, T* panel, T* frame) {
  if (directions.distribution == Distribution::kGiven) {
    const Strided& given = directions.given;
    const T* data = static_cast<const T*>(given.data) + p * given.stride[0];
    return load_rows({data, {given.stride[1], given.stride[2]}}, first, M, n, ld, rows, panel);
  }
  draw_direction(directions, first, p, n, panel, frame);
  panels_to_rows(panel, n, 1, rows, ld);
}
