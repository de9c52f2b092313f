// The gradients of weights, G[n_out][n_in] += Z[n_out][M] Hᵀ[M][n_in], on the register block of multiply.h with
// features along the vectors.
//
// G lies in strips of features, [strip][n_out][two vectors], of which the last is a single vector wide if that is
// enough: it is read and written once for each Z, in this order, so that a gradient larger than the caches is one
// contiguous stream. Rows [n_out][n_in] of a power of two would also meet in the few sets of the first-level cache.
// Only what is summed at once, in registers, goes straight into such rows.
//
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// What a gradient is summed over, a part of it: adjoints z [n_out][ld_z], and the numbers below as rows [count][ld].
// Of panels, ld_z = kPanel, there may be several: from the end of a row of z to where it goes on it is `next` numbers.
template <class T>
struct Samples {
  const T *z, *h;
  std::int64_t ld, count, ld_z, next;
};

// A block of G, rows from `row` and columns from `j` on: g [R][ld_g], which holds a sum already unless this is its
// first. Of samples whose rows end before it, it has nothing.
template <class T>
struct Block {
  std::int64_t row, j;
  bool first;
  T* g;
  std::int64_t ld_g, columns;
};

// `accumulate` over panels as one loop, whose end the processor would mispredict at each panel: 12 % of the time.
template <class T, int R, int V>
SK_INLINE void accumulate_panels(typename Vec<T>::native (&c)[R][V], const T* z, std::int64_t next, const T* h,
                                 std::int64_t ld, std::int64_t count) {
  for (std::int64_t k = 0; k < count; ++k) {
    typename Vec<T>::native row[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) row[v] = Vec<T>::load(h + v * kPanel<T>).v;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) c[i][v] += z[i * kPanel<T>] * row[v];
    }
    h += ld;
    z += 1 + (k % kPanel<T> + 1) / kPanel<T> * next;
  }
}

template <class T, int R, int V>
void outer_block(const Samples<T>* all, std::int64_t parts, const Block<T>& block) {
  constexpr int kLanes = Vec<T>::kLanes, kLine = 64 / int(sizeof(T));
  T* g = block.g;
  const std::int64_t ld_g = block.ld_g;
  typename Vec<T>::native sums[R][V] = {};
  if (!block.first) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[i][v] = Vec<T>::load(g + i * ld_g + v * kLanes).v;
    }
  }
#pragma GCC unroll 16
  for (int i = R; i < 2 * R; ++i) {  // the next block's sums
#pragma GCC unroll 2
    for (int v = 0; v < V * kLanes; v += kLine) __builtin_prefetch(g + i * ld_g + v, 1);
  }
  for (std::int64_t p = 0; p < parts; ++p) {
    const Samples<T>& some = all[p];
    if (block.j >= some.ld) continue;
    const T *z = some.z + block.row * some.ld_z, *h = some.h + block.j;
    if (some.ld_z == kPanel<T>) {
      accumulate_panels<T, R, V>(sums, z, some.next, h, some.ld, some.count);
    } else {
      accumulate<T, R, V, false>(sums, z, some.ld_z, Constant<1>(), h, some.ld, kLanes, some.count);
    }
  }
  T narrow[R * V * kLanes];
  const bool whole = block.columns >= V * kLanes;
  T* to = whole ? g : narrow;
  const std::int64_t ld = whole ? ld_g : V * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Vec<T>(sums[i][v]).store(to + i * ld + v * kLanes);
  }
  for (std::int64_t i = 0; !whole && i < R; ++i) {
    for (std::int64_t j = 0; j < block.columns; ++j) g[i * ld_g + j] = narrow[i * V * kLanes + j];
  }
}

template <class T>
using OuterBlock = void (*)(const Samples<T>*, std::int64_t, const Block<T>&);

template <class T, int V, int... I>
OuterBlock<T> outer_block_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr OuterBlock<T> kTable[] = {&outer_block<T, I + 1, V>...};
  return kTable[R - 1];
}
// The width of the strip of a gradient of n_in columns that begins at column j; it lies at j * n_out.
template <class T>
constexpr std::int64_t strip(std::int64_t n_in, std::int64_t j) {
  return n_in - j > Vec<T>::kLanes ? 2 * Vec<T>::kLanes : Vec<T>::kLanes;
}

template <class T>
void outer(const Samples<T>* all, std::int64_t parts, const Block<T>& block, std::int64_t R, bool two) {
  (two ? outer_block_of<T, 2>(R, RowCounts{}) : outer_block_of<T, 1>(R, RowCounts{}))(all, parts, block);
}

// Samples added to the first n of the n_in columns of G, which lies in strips
template <class T>
void outer_to_strips(const Samples<T>* all, std::int64_t parts, std::int64_t n_out, std::int64_t n, bool first, T* g,
                     std::int64_t n_in) {
  const RowBlocks blocks(n_out);
  for (std::int64_t j = 0; j < n; j += 2 * Vec<T>::kLanes) {
    const std::int64_t width = strip<T>(n_in, j);
    for (std::int64_t block = 0; block < blocks.blocks; ++block) {
      const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
      outer(all, parts, {row, j, first, g + j * n_out + row * width, width, width}, R, n - j > Vec<T>::kLanes);
    }
  }
}

// All of some blocks of rows of G [n_out][n_in] from all samples
template <class T>
void outer_to_rows(const Samples<T>* all, std::int64_t parts, std::int64_t n_out, const Range& some, T* g,
                   std::int64_t n_in) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const RowBlocks blocks(n_out);
  std::int64_t step = kLanes;
  for (std::int64_t j = 0; j < n_in; j += step) {
    bool two = n_in - j > kLanes;
    for (std::int64_t p = 0; p < parts; ++p) two = two && all[p].ld != j + kLanes;  // whose rows end between the two
    step = two ? 2 * kLanes : kLanes;
    for (std::int64_t block = some.begin; block < some.end; ++block) {
      const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
      outer(all, parts, {row, j, true, g + row * n_in + j, n_in, n_in - j}, R, two);
    }
  }
}

// A number of each of M samples summed, of panels that are `next` apart; what lanes beyond them have is no number
template <class T>
T sum_samples(const T* z, std::int64_t next, std::int64_t M) {
  Vec<T> lanes(0.0);
  T total = 0;
  for (; M >= kPanel<T>; M -= kPanel<T>, z += next) lanes = lanes + Vec<T>::load(z);
  for (std::int64_t m = 0; m < M; ++m) total += z[m];
  return total + sum(lanes);
}
