// The two matrix products of a tile, on a register block of R rows by V vectors.
//
// A tile keeps its samples in panels of a vector each: an array of n features is [panel][n][kPanel]. So samples lie
// along the registers, features of any count are never padded, and the left operand is broadcast. A block takes two
// panels, of one stream or of two: directions that are carried side by side are so many panels more.
//
//   product:  C[n_out][panel] = A[n_out][K] B[K][panel]      forward (A = W) and backward (A = Wᵀ)
//   outer:    G[n_out][n_in] += Z[n_out][M] Hᵀ[M][n_in]      gradients of the weights, in outer.h
//
// Included inside the namespace of one instruction set: no include here, no #pragma once.

template <class T>
constexpr int kPanel = Vec<T>::kLanes;

// Lines ahead of the arithmetic that the panels of a product are fetched: from 256 features on they leave the
// first-level cache, and a line from the second-level cache comes later than the sums want it.
constexpr int kAhead = 8;

// The share of a part
struct Range {
  std::int64_t begin, end;
  Range(std::int64_t n, int part, int parts) : Range{n * part / parts, n * (part + 1) / parts} {}
  Range(std::int64_t first, std::int64_t beyond) : begin(first), end(beyond) {}
};

// Rows are cut into the fewest blocks of at most kRows, as even as can be.
struct RowBlocks {
  std::int64_t rows, blocks;
  explicit RowBlocks(std::int64_t n) : rows(n), blocks((n + kRows - 1) / kRows) {}
  std::int64_t begin(std::int64_t b) const { return b * rows / blocks; }
};

// A (any strides) copied so that a row block is [K][R]: what `product` broadcasts is then one contiguous stream.
// Whole vectors where A is contiguous one way or the other. What they write beyond R numbers is written again by what
// follows, so the last k, behind which another block lies, go number by number. Only those in `some`, one range after
// the other.
template <class T>
void pack_rows(const T* a, std::int64_t stride_row, std::int64_t stride_k, std::int64_t K, std::int64_t row0,
               std::int64_t R, const Range& some, T* packed) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  T* out = packed + row0 * K;
  a += row0 * stride_row;
  const std::int64_t last = (R - 1) / kLanes * kLanes, written = last + kLanes;
  std::int64_t k = some.begin;
  if (stride_k == 1) {
    for (; k < some.end && (K - k - kLanes + 1) * R >= written; k += kLanes) {
      for (std::int64_t i = last; i >= 0; i -= kLanes) {
        transpose_square(a + i * stride_row + k, stride_row, R - i, out + k * R + i, R);
      }
    }
  } else if (stride_row == 1 && stride_k >= written) {
    for (; k < some.end && k < K - 1 && (K - k) * R >= written; ++k) {
      for (std::int64_t i = 0; i < R; i += kLanes) Vec<T>::load(a + k * stride_k + i).store(out + k * R + i);
    }
  }
  for (; k < some.end; ++k) {
    for (std::int64_t i = 0; i < R; ++i) out[k * R + i] = a[i * stride_row + k * stride_k];
  }
}

// The left operand of a product: packed, row blocks of [K][R]; or where it lies, with rows or columns contiguous.
template <class T>
struct Matrix {
  const T* data = nullptr;
  std::int64_t rows = 0, K = 0;
  std::int64_t next_row = 1, next_k = 0;  // one of them is 1; of packed rows the other one is R
  bool packed = true;

  // Where the block of rows that begins with this one is, of R rows, and how far its next column or row is
  const T* block(std::int64_t row) const { return data + row * (packed ? K : next_row); }
  std::int64_t next(std::int64_t R) const { return packed ? R : next_row == 1 ? next_k : next_row; }
};

template <int n>
using Constant = std::integral_constant<std::int64_t, n>;

// c[R][V] += sum over k of a[i * next_row + k * next_k] * b[k * ld_b + v * next_b + ...]
template <class T, int R, int V, bool kFetch, class Row, class Next>
SK_INLINE void accumulate(typename Vec<T>::native (&c)[R][V], const T* a, Row next_row, Next next_k, const T* b,
                          std::int64_t ld_b, std::int64_t next_b, std::int64_t K) {
  for (std::int64_t k = 0; k < K; ++k) {
    typename Vec<T>::native row[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) row[v] = Vec<T>::load(b + v * next_b).v;
    if constexpr (kFetch) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) __builtin_prefetch(b + kAhead * ld_b + v * next_b);
    }
    if constexpr (std::is_same_v<Next, std::int64_t>) __builtin_prefetch(a + kAhead * next_k + R - 1);
    const T* at = a;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) c[i][v] += *at * row[v];
      at += next_row;
      // one pointer that walks: the compiler would keep R of them, more than there are registers
      if constexpr (std::is_same_v<Row, std::int64_t>) asm("" : "+r"(at));
    }
    a += next_k;
    b += ld_b;
  }
}

// Few rows leave too few independent sums to hide the latency of a multiply-add: split k into kSplit of them.
template <int R, int V>
constexpr int kSplit = R * V <= 2   ? 4
                       : R * V <= 4 ? 2
                                    : 1;

// V panels of b and c, which are next_b and next_c apart, and their rows `ld`. Of a the rows are adjacent and columns
// `next` apart, or the other way round.
template <class T, int R, int V, bool kAdjacent, class Ld>
void product_block(const T* a, std::int64_t next, const T* b, Ld ld, std::int64_t next_b, std::int64_t K, const T* bias,
                   T* c, std::int64_t next_c) {
  constexpr int S = kSplit<R, V>;
  constexpr bool kFetch = R >= 8 && (V == 2 || std::is_same_v<Ld, std::int64_t>);
  const auto add = [=](typename Vec<T>::native(&sums)[R][V], std::int64_t k, std::int64_t count) {
    const T* from = b + k * ld;
    if constexpr (kAdjacent) {
      accumulate<T, R, V, kFetch>(sums, a + k * next, Constant<1>(), next, from, ld, next_b, count);
    } else {
      accumulate<T, R, V, kFetch>(sums, a + k, next, Constant<1>(), from, ld, next_b, count);
    }
  };
  typename Vec<T>::native sums[R][V] = {};
  if (bias) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[i][v] = Vec<T>(double(bias[i])).v;
    }
  }
  std::int64_t done = 0;
  if constexpr (S > 1) {
    typename Vec<T>::native split[S][R][V] = {};
    for (; done + S <= K; done += S) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) add(split[s], done + s, 1);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) sums[i][v] += split[s][i][v];
      }
    }
  }
  add(sums, done, K - done);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Vec<T>(sums[i][v]).store(c + i * ld + v * next_c);
  }
}

template <class T, class Ld>
using ProductBlock = void (*)(const T*, std::int64_t, const T*, Ld, std::int64_t, std::int64_t, const T*, T*,
                              std::int64_t);
template <class T, class Ld, int V, bool kAdjacent, int... I>
ProductBlock<T, Ld> product_block_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr ProductBlock<T, Ld> kTable[] = {&product_block<T, I + 1, V, kAdjacent, Ld>...};
  return kTable[R - 1];
}
using RowCounts = std::make_integer_sequence<int, kRows>;

template <class T, class Ld>
ProductBlock<T, Ld> product_block_of(std::int64_t R, bool two, bool adjacent) {
  if (adjacent) {
    return two ? product_block_of<T, Ld, 2, true>(R, RowCounts{}) : product_block_of<T, Ld, 1, true>(R, RowCounts{});
  }
  return two ? product_block_of<T, Ld, 2, false>(R, RowCounts{}) : product_block_of<T, Ld, 1, false>(R, RowCounts{});
}

// Only the first K columns of A are multiplied.
// `after(panel, row, rows)` sees each finished block of C, rows from `row` on of a panel, while it is in the cache.
template <class T, class After>
void product(const Matrix<T>& a, std::int64_t K, const T* b, std::int64_t panels, const T* bias, T* c, After after) {
  const RowBlocks blocks(a.rows);
  const std::int64_t next_b = K * kPanel<T>, next_c = a.rows * kPanel<T>;
  using Ld = Constant<kPanel<T>>;
  const bool adjacent = a.next_row == 1;
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
    for (std::int64_t panel = 0; panel < panels; panel += 2) {
      const bool two = panels - panel > 1;
      const auto run = product_block_of<T, Ld>(R, two, adjacent);
      run(a.block(row), a.next(R), b + panel * next_b, Ld(), next_b, K, bias ? bias + row : nullptr,
          c + panel * next_c + row * kPanel<T>, next_c);
      after(panel, row, R);
      if (two) after(panel + 1, row, R);
    }
  }
}

// The same of columns that lie side by side, b [K][ld], so many panels of them. A block of C is overwritten by the
// next, [R][ld], when `after(row, rows)` has seen it.
template <class T, class After>
void product_of_columns(const Matrix<T>& a, std::int64_t K, const T* b, std::int64_t ld, std::int64_t panels, T* c,
                        After after) {
  const RowBlocks blocks(a.rows);
  const bool adjacent = a.next_row == 1;
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
    for (std::int64_t at = 0; at < panels * kPanel<T>; at += 2 * kPanel<T>) {
      const auto run = product_block_of<T, std::int64_t>(R, panels * kPanel<T> - at > kPanel<T>, adjacent);
      run(a.block(row), a.next(R), b + at, ld, kPanel<T>, K, nullptr, c + at, kPanel<T>);
    }
    after(row, R);
  }
}

// rows[m][i] = panels[m / kPanel][i][m % kPanel] of n features; the rest of a row up to a vector is 0
template <class T>
void panels_to_rows(const T* panels, std::int64_t n, std::int64_t count, T* rows, std::int64_t ld) {
  for (std::int64_t panel = 0; panel < count; ++panel, panels += n * kPanel<T>, rows += kPanel<T> * ld) {
    for (std::int64_t i = 0; i < n; i += kPanel<T>) {
      transpose_square(panels + i * kPanel<T>, kPanel<T>, n - i, rows + i, ld);
    }
  }
}

// The inverse; what the last panel has beyond M samples is 0: where an earlier call has left a large number, a sine
// would be taken lane by lane, and be of other bits for all. A square would end beyond the last features.
template <class T>
void rows_to_panels(const T* rows, std::int64_t ld, std::int64_t n, std::int64_t M, T* panels) {
  for (std::int64_t m = 0; m < M; m += kPanel<T>, rows += kPanel<T> * ld, panels += n * kPanel<T>) {
    const std::int64_t count = M - m < kPanel<T> ? M - m : kPanel<T>;
    std::int64_t i = 0;
    for (; i + kPanel<T> <= n; i += kPanel<T>) transpose_square(rows + i, ld, count, panels + i * kPanel<T>, kPanel<T>);
    for (; i < n; ++i) {
      for (std::int64_t k = 0; k < kPanel<T>; ++k) panels[i * kPanel<T> + k] = k < count ? rows[k * ld + i] : T(0);
    }
  }
}

// Rows of n features that are `stride` apart as rows in the room, the rest of each up to a vector 0
template <class T>
void rows_apart(const T* from, std::int64_t stride, std::int64_t n, std::int64_t M, T* rows, std::int64_t ld) {
  for (std::int64_t m = 0; m < M; ++m) {
    T* row = rows + m * ld;
    for (std::int64_t i = 0; i < n; ++i) row[i] = from[m * stride + i];
    for (std::int64_t i = n; i < (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>; ++i) row[i] = T(0);
  }
}

// M rows of an array that are `stride` apart from panels of n features
template <class T>
void panels_to_array(const T* from, std::int64_t n, std::int64_t M, T* to, std::int64_t stride) {
  for (std::int64_t m = 0; m < M; m += kPanel<T>, from += n * kPanel<T>) {
    const std::int64_t count = M - m < kPanel<T> ? M - m : kPanel<T>;
    std::int64_t i = 0;
    for (; count == kPanel<T> && i + kPanel<T> <= n; i += kPanel<T>) {
      transpose_square(from + i * kPanel<T>, kPanel<T>, kPanel<T>, to + m * stride + i, stride);
    }
    for (std::int64_t k = 0; k < count; ++k) {
      for (std::int64_t j = i; j < n; ++j) to[(m + k) * stride + j] = from[j * kPanel<T> + k];
    }
  }
}
