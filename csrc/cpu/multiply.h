// The two matrix products of a tile, on a register block of R rows by V vectors.
//
// A tile keeps its samples in panels of a vector each: an array of n features is [panel][n][kPanel]. So samples lie
// along the registers, features of any count are never padded, and the left operand is broadcast. A block takes two
// panels, of one stream or of two: directions that are carried side by side are so many panels more.
//
//   product:  C[n_out][panel] = A[n_out][K] B[K][panel]      forward (A = W) and backward (A = Wᵀ)
//   outer:    G[n_out][n_in] += Z[n_out][M] Hᵀ[M][n_in]      gradients of the weights
//
// G lies in strips of features, [strip][n_out][two vectors], of which the last is a single vector wide if that is
// enough: it is read and written once for each Z, in this order, so that a gradient larger than the caches is one
// contiguous stream. Rows [n_out][n_in] of a power of two would also meet in the few sets of the first-level cache.
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
// follows, so the last k, behind which another block lies, go number by number.
template <class T>
void pack_rows(const T* a, std::int64_t stride_row, std::int64_t stride_k, std::int64_t K, std::int64_t row0,
               std::int64_t R, T* packed) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  T* out = packed + row0 * K;
  a += row0 * stride_row;
  const std::int64_t last = (R - 1) / kLanes * kLanes, written = last + kLanes;
  std::int64_t k = 0;
  if (stride_k == 1) {
    for (; (K - k - kLanes + 1) * R >= written; k += kLanes) {
      for (std::int64_t i = last; i >= 0; i -= kLanes) {
        transpose_square(a + i * stride_row + k, stride_row, R - i, out + k * R + i, R);
      }
    }
  } else if (stride_row == 1 && stride_k >= written) {
    for (; k < K - 1 && (K - k) * R >= written; ++k) {
      for (std::int64_t i = 0; i < R; i += kLanes) Vec<T>::load(a + k * stride_k + i).store(out + k * R + i);
    }
  }
  for (; k < K; ++k) {
    for (std::int64_t i = 0; i < R; ++i) out[k * R + i] = a[i * stride_row + k * stride_k];
  }
}

// A packed matrix: row blocks of [K][R].
template <class T>
struct Packed {
  T* data = nullptr;
  std::int64_t rows = 0, K = 0;
};

// c[R][V] += sum over k of a[i * kStrideRow + k * kStrideK] * b[k * ld_b + v * next_b + ...]
template <class T, int R, int V, int kStrideRow, int kStrideK>
SK_INLINE void accumulate(typename Vec<T>::native (&c)[R][V], const T* a, const T* b, std::int64_t ld_b,
                          std::int64_t next_b, std::int64_t K) {
  constexpr bool kFetch = kStrideRow == 1 && R >= 8;
  for (std::int64_t k = 0; k < K; ++k) {
    typename Vec<T>::native row[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) row[v] = Vec<T>::load(b + v * next_b).v;
    if constexpr (kFetch) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) __builtin_prefetch(b + kAhead * ld_b + v * next_b);
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) c[i][v] += a[i * kStrideRow] * row[v];
    }
    a += kStrideK;
    b += ld_b;
  }
}

// Few rows leave too few independent sums to hide the latency of a multiply-add: split k into kSplit of them.
template <int R, int V>
constexpr int kSplit = R * V <= 2   ? 4
                       : R * V <= 4 ? 2
                                    : 1;

// V panels of b and c, which are next_b and next_c apart
template <class T, int R, int V>
void product_block(const T* a, const T* b, std::int64_t next_b, std::int64_t K, const T* bias, T* c,
                   std::int64_t next_c) {
  constexpr int S = kSplit<R, V>;
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
      for (int s = 0; s < S; ++s) {
        accumulate<T, R, V, 1, R>(split[s], a + (done + s) * R, b + (done + s) * kPanel<T>, kPanel<T>, next_b, 1);
      }
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
  accumulate<T, R, V, 1, R>(sums, a + done * R, b + done * kPanel<T>, kPanel<T>, next_b, K - done);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Vec<T>(sums[i][v]).store(c + i * kPanel<T> + v * next_c);
  }
}

// z: first row of the block in the first panel; h: the transposed rows [streams][M, up to whole panels][ld_h];
// g: [R][ld_g], which hold a sum already unless this is their first
template <class T, int R, int V>
void outer_block(const T* z, std::int64_t panel_stride, std::int64_t streams, std::int64_t M, const T* h,
                 std::int64_t ld_h, bool first, T* g, std::int64_t ld_g) {
  constexpr int kLanes = Vec<T>::kLanes;
  typename Vec<T>::native sums[R][V] = {};
  if (!first) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[i][v] = Vec<T>::load(g + i * ld_g + v * kLanes).v;
    }
  }
  constexpr int kBlock = R * V * kLanes, kLine = 64 / int(sizeof(T));
#pragma GCC unroll 32
  for (int i = kBlock; i < 2 * kBlock; i += kLine) __builtin_prefetch(g + i, 1);  // the next block's sums
  for (std::int64_t stream = 0; stream < streams; ++stream) {
    for (std::int64_t m = 0; m < M; m += kPanel<T>, z += panel_stride, h += kPanel<T> * ld_h) {
      const std::int64_t k = M - m < kPanel<T> ? M - m : kPanel<T>;
      accumulate<T, R, V, kPanel<T>, 1>(sums, z, h, ld_h, kLanes, k);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Vec<T>(sums[i][v]).store(g + i * ld_g + v * kLanes);
  }
}

template <class T>
using ProductBlock = void (*)(const T*, const T*, std::int64_t, std::int64_t, const T*, T*, std::int64_t);
template <class T>
using OuterBlock = void (*)(const T*, std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, bool, T*,
                            std::int64_t);

template <class T, int V, int... I>
ProductBlock<T> product_block_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr ProductBlock<T> kTable[] = {&product_block<T, I + 1, V>...};
  return kTable[R - 1];
}
template <class T, int V, int... I>
OuterBlock<T> outer_block_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr OuterBlock<T> kTable[] = {&outer_block<T, I + 1, V>...};
  return kTable[R - 1];
}
using RowCounts = std::make_integer_sequence<int, kRows>;

// Only the first K columns of A are multiplied.
// `after(panel, row, rows)` sees each finished block of C, rows from `row` on of a panel, while it is in the cache.
template <class T, class After>
void product(const Packed<T>& a, std::int64_t K, const T* b, std::int64_t panels, const T* bias, T* c, After after) {
  const RowBlocks blocks(a.rows);
  const std::int64_t next_b = K * kPanel<T>, next_c = a.rows * kPanel<T>;
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
    for (std::int64_t panel = 0; panel < panels; panel += 2) {
      const bool two = panels - panel > 1;
      const auto run = two ? product_block_of<T, 2>(R, RowCounts{}) : product_block_of<T, 1>(R, RowCounts{});
      run(a.data + row * a.K, b + panel * next_b, next_b, K, bias ? bias + row : nullptr,
          c + panel * next_c + row * kPanel<T>, next_c);
      after(panel, row, R);
      if (two) after(panel + 1, row, R);
    }
  }
}

// The width of the strip of a gradient of n_in columns that begins at column j; it lies at j * n_out.
template <class T>
constexpr std::int64_t strip(std::int64_t n_in, std::int64_t j) {
  return n_in - j > Vec<T>::kLanes ? 2 * Vec<T>::kLanes : Vec<T>::kLanes;
}

// Of the n_in columns of G the first n, and some of its blocks of rows
template <class T>
void outer(const T* z, std::int64_t n_out, const Range& some, const T* h, std::int64_t ld_h, std::int64_t n,
           std::int64_t streams, std::int64_t M, bool first, T* g, std::int64_t n_in) {
  const RowBlocks blocks(n_out);
  for (std::int64_t j = 0; j < n; j += 2 * Vec<T>::kLanes) {
    const std::int64_t width = strip<T>(n_in, j);
    for (std::int64_t block = some.begin; block < some.end; ++block) {
      const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
      const auto run =
          n - j > Vec<T>::kLanes ? outer_block_of<T, 2>(R, RowCounts{}) : outer_block_of<T, 1>(R, RowCounts{});
      run(z + row * kPanel<T>, n_out * kPanel<T>, streams, M, h + j, ld_h, first, g + j * n_out + row * width, width);
    }
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
// would be taken lane by lane, and be of other bits for all.
template <class T>
void rows_to_panels(const T* rows, std::int64_t ld, std::int64_t n, std::int64_t M, T* panels) {
  for (std::int64_t m = 0; m < M; ++m) {
    T* to = panels + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
    for (std::int64_t i = 0; i < n; ++i) to[i * kPanel<T>] = rows[m * ld + i];
  }
  for (std::int64_t m = M; m % kPanel<T>; ++m) {
    T* to = panels + (m / kPanel<T>)*n * kPanel<T> + m % kPanel<T>;
    for (std::int64_t i = 0; i < n; ++i) to[i * kPanel<T>] = T(0);
  }
}
