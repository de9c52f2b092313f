// A convolution of small images, its adjoint and that of its weight (csrc/convolved.h). Samples lie along the
// registers: an image is [position][channel], each number two vectors of samples. So no position is padded, taps beyond
// an image are left out, and a kernel's row that lies within it is one run of channels, whatever the stride.
// Included inside the namespace of one instruction set: no include here, no #pragma once.

// Samples that are computed at a time
template <class T>
constexpr std::int64_t kAtOnce = 2 * Vec<T>::kLanes;

// Images of so many channels and positions
struct Images {
  std::int64_t channels, positions;
  std::int64_t size() const { return channels * positions; }
};

// For each square of features of a sample and each vector of samples: the first feature, the first of these samples,
// and where a feature lies among those of a tile
template <class T, class Work>
void each_square(const Images& images, Work work) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  std::int64_t channel = 0, position = 0, places[kLanes];
  for (std::int64_t f = 0; f < images.size(); f += kLanes) {
    const std::int64_t count = images.size() - f < kLanes ? images.size() - f : kLanes;
    for (std::int64_t j = 0; j < count; ++j) {
      places[j] = (position * images.channels + channel) * kAtOnce<T>;
      if (++position == images.positions) ++channel, position = 0;
    }
    for (std::int64_t m = 0; m < kAtOnce<T>; m += kLanes) work(f, count, m, places);
  }
}

// A tile of samples, of which there are so many; 0 of others
template <class T>
void take_images(const Images& images, const T* samples, std::int64_t M, T* tile) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  T square[kLanes * kLanes];
  each_square<T>(images, [&](std::int64_t f, std::int64_t count, std::int64_t m, const std::int64_t* places) {
    const std::int64_t there = M - m < 0 ? 0 : M - m < kLanes ? M - m : kLanes;
    const T* from = samples + m * images.size() + f;
    if (count == kLanes) {
      transpose_square(from, images.size(), there, square, kLanes);
      for (std::int64_t j = 0; j < kLanes; ++j) Vec<T>::load(square + j * kLanes).store(tile + places[j] + m);
      return;
    }
    for (std::int64_t j = 0; j < count; ++j) {
      for (std::int64_t k = 0; k < kLanes; ++k)
        tile[places[j] + m + k] = k < there ? from[k * images.size() + j] : T(0);
    }
  });
}

// The inverse
template <class T>
void give_images(const Images& images, const T* tile, std::int64_t M, T* samples) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  T square[kLanes * kLanes];
  each_square<T>(images, [&](std::int64_t f, std::int64_t count, std::int64_t m, const std::int64_t* places) {
    const std::int64_t there = M - m < kLanes ? M - m : kLanes;
    T* to = samples + m * images.size() + f;
    if (count == kLanes && there == kLanes) {
      for (std::int64_t j = 0; j < kLanes; ++j) Vec<T>::load(tile + places[j] + m).store(square + j * kLanes);
      return transpose_square(square, kLanes, kLanes, to, images.size());
    }
    for (std::int64_t k = 0; k < there; ++k) {
      for (std::int64_t j = 0; j < count; ++j) to[k * images.size() + j] = tile[places[j] + m + k];
    }
  });
}

// R channels of one position, of all taps that lie within the images; weights are packed [tap][channel][R]
template <class T, int R>
void convolve_block(const Taps* taps, const Taps* end, const T* weight, const T* from, const T* bias, T* to) {
  constexpr int kLanes = Vec<T>::kLanes;
  typename Vec<T>::native sums[R][2] = {};
  if (bias) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) sums[i][0] = sums[i][1] = Vec<T>(double(bias[i])).v;
  }
  for (; taps < end; ++taps) {
    accumulate<T, R, 2, false>(sums, weight + taps->weight * R, Constant<1>(), Constant<R>(),
                               from + taps->from * kAtOnce<T>, kAtOnce<T>, kLanes, taps->count);
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    Vec<T>(sums[i][0]).store(to + i * kAtOnce<T>);
    Vec<T>(sums[i][1]).store(to + i * kAtOnce<T> + kLanes);
  }
}

template <class T>
using ConvolveBlock = void (*)(const Taps*, const Taps*, const T*, const T*, const T*, T*);
template <class T, int... I>
ConvolveBlock<T> convolve_block_of(std::int64_t R, std::integer_sequence<int, I...>) {
  static constexpr ConvolveBlock<T> kTable[] = {&convolve_block<T, I + 1>...};
  return kTable[R - 1];
}

// A tile of images of so many channels from one of those on the other side, of K numbers of weights for each channel
template <class T>
void convolve(const Reaches& reaches, std::int64_t channels, std::int64_t K, const T* weight, const T* from,
              const T* bias, T* to) {
  const RowBlocks blocks(channels);
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
    const auto run = convolve_block_of<T>(R, RowCounts{});
    for (std::size_t i = 0; i + 1 < reaches.begin.size(); ++i) {
      const Taps* taps = reaches.taps.data();
      run(taps + reaches.begin[i], taps + reaches.begin[i + 1], weight + row * K, from, bias ? bias + row : nullptr,
          to + (std::int64_t(i) * channels + row) * kAtOnce<T>);
    }
  }
}

// Weights of R channels as `convolve_block` reads them, of all blocks one after the other: of an adjoint with the
// kernel turned around, so that what lies one after the other in images does so here
template <class T>
void pack_kernels(const Convolved& work, bool adjoint, T* packed) {
  const T* weight = static_cast<const T*>(work.weight);
  const std::int64_t channels = adjoint ? work.C : work.O, others = adjoint ? work.O : work.C, taps = work.kernel();
  const std::int64_t next = adjoint ? taps : others * taps, next_other = adjoint ? channels * taps : taps;
  const RowBlocks blocks(channels);
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t row = blocks.begin(block), R = blocks.begin(block + 1) - row;
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const T* of_tap = weight + row * next + (adjoint ? taps - 1 - tap : tap);
      for (std::int64_t other = 0; other < others; ++other) {
        for (std::int64_t i = 0; i < R; ++i) *packed++ = of_tap[other * next_other + i * next];
      }
    }
  }
}

// How many channels of each side have their weights' adjoints summed at once, in registers
constexpr int kSide = kRows > 8 ? 4 : 3;
using SideCounts = std::make_integer_sequence<int, kSide>;

// Where the channels of both sides lie of which a weight's adjoint is summed, over these outputs
template <class T>
struct Pairs {
  const T *outputs, *inputs;
  Range rows, columns;
  std::int64_t next_row_out, next_out, next_row, next;
};

// sums[i * stride + j], a vector each, of outputs i and inputs j
template <class T, int R, int S>
void correlate_block(const Pairs<T>& pairs, T* g, std::int64_t stride) {
  constexpr int kLanes = Vec<T>::kLanes;
  typename Vec<T>::native sums[R][S];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < S; ++j) sums[i][j] = Vec<T>::load(g + i * stride + j * kLanes).v;
  }
  for (std::int64_t row = pairs.rows.begin; row < pairs.rows.end; ++row) {
    const T *outputs = pairs.outputs + row * pairs.next_row_out, *inputs = pairs.inputs + row * pairs.next_row;
    for (std::int64_t at = pairs.columns.begin; at < pairs.columns.end; ++at) {
      const T *out = outputs + at * pairs.next_out, *in = inputs + at * pairs.next;
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        typename Vec<T>::native of_input[S];
#pragma GCC unroll 4
        for (int j = 0; j < S; ++j) of_input[j] = Vec<T>::load(in + j * kAtOnce<T> + v * kLanes).v;
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          const auto of_output = Vec<T>::load(out + i * kAtOnce<T> + v * kLanes).v;
#pragma GCC unroll 4
          for (int j = 0; j < S; ++j) sums[i][j] += of_output * of_input[j];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < S; ++j) Vec<T>(sums[i][j]).store(g + i * stride + j * kLanes);
  }
}

template <class T>
using CorrelateBlock = void (*)(const Pairs<T>&, T*, std::int64_t);
template <class T, int R, int... J>
CorrelateBlock<T> correlate_block_of(std::int64_t S, std::integer_sequence<int, J...>) {
  static constexpr CorrelateBlock<T> kTable[] = {&correlate_block<T, R, J + 1>...};
  return kTable[S - 1];
}
template <class T, int... I>
CorrelateBlock<T> correlate_block_of(std::int64_t R, std::int64_t S, std::integer_sequence<int, I...>) {
  using Of = CorrelateBlock<T> (*)(std::int64_t, SideCounts);
  static constexpr Of kTable[] = {&correlate_block_of<T, I + 1>...};
  return kTable[R - 1](S, SideCounts{});
}

// The outputs of a dim of which a tap lies within the images
inline Range outputs_of(const Slid& dim, std::int64_t tap) {
  Range range(0, dim.outputs);
  while (range.begin < range.end && dim.input(range.begin, tap) < 0) ++range.begin;
  while (range.begin < range.end && dim.input(range.end - 1, tap) >= dim.inputs) --range.end;
  return range;
}

// The adjoints of weights, [tap][O][C] a vector each, and what a tile of both sides adds to them
template <class T>
void correlate(const Convolved& work, const T* inputs, const T* outputs, T* g) {
  const auto blocks_of = [](std::int64_t n) { return (n + kSide - 1) / kSide; };
  const std::int64_t rows = blocks_of(work.O), columns = blocks_of(work.C), ld = work.C * Vec<T>::kLanes;
  const Slid &down = work.dims[0], &along = work.dims[1];
  for (std::int64_t tap = 0; tap < work.kernel(); ++tap, g += work.O * ld) {
    const std::int64_t i = tap / along.kernel, j = tap % along.kernel;
    const std::int64_t next = work.C * kAtOnce<T>, next_out = work.O * kAtOnce<T>;
    const std::int64_t first = (down.input(0, i) * along.inputs + along.input(0, j)) * next;
    Pairs<T> pairs{outputs,
                   inputs,
                   outputs_of(down, i),
                   outputs_of(along, j),
                   along.outputs * next_out,
                   next_out,
                   down.stride * along.inputs * next,
                   along.stride * next};
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t o = r * work.O / rows, R = (r + 1) * work.O / rows - o;
      for (std::int64_t s = 0; s < columns; ++s) {
        const std::int64_t c = s * work.C / columns, S = (s + 1) * work.C / columns - c;
        pairs.outputs = outputs + o * kAtOnce<T>;
        pairs.inputs = inputs + first + c * kAtOnce<T>;
        correlate_block_of<T>(R, S, SideCounts{})(pairs, g + o * ld + c * Vec<T>::kLanes, ld);
      }
    }
  }
}

// What a part of the samples is computed in
template <class T>
struct ImagesRoom {
  T *inputs, *outputs, *made;  // tiles
  T *dweight, *dbias;          // sums, a vector each
  std::size_t bytes;

  ImagesRoom(const Convolved& work, void* base) {
    Arena arena(base);
    const std::int64_t in = work.C * work.positions(), out = work.O * work.positions_out();
    inputs = arena.take<T>(work.inputs ? in * kAtOnce<T> : 0);
    outputs = arena.take<T>(work.outputs ? out * kAtOnce<T> : 0);
    made = arena.take<T>(std::max(work.to_inputs ? in : 0, work.to_outputs ? out : 0) * kAtOnce<T>);
    dweight = arena.take<T>(work.dweight ? work.O * work.C * work.kernel() * Vec<T>::kLanes : 0);
    dbias = arena.take<T>(work.dbias ? channels_of_bias(work) * Vec<T>::kLanes : 0);
    bytes = arena.used();
  }

  static std::int64_t channels_of_bias(const Convolved& work) { return work.transposed ? work.C : work.O; }
};

// The weights of the way to the outputs, and those of the way to the inputs, as they are read
template <class T>
struct Kernel {
  T *forward, *backward;
  std::size_t bytes;

  Kernel(const Convolved& work, void* base) {
    Arena arena(base);
    const std::int64_t count = work.O * work.C * work.kernel();
    forward = arena.take<T>(work.to_outputs ? count : 0);
    backward = arena.take<T>(work.to_inputs ? count : 0);
    bytes = arena.used();
  }
};

template <class T>
void pack_weights(const Convolved& work, void* shared, int part, int) {
  const Kernel<T> kernel(work, shared);
  if (part == 0 && work.to_outputs) pack_kernels(work, false, kernel.forward);
  if (part == 0 && work.to_inputs) pack_kernels(work, true, kernel.backward);
}

template <class T>
void convolve_tiles(const Convolved& work, void* shared, void* base, int part, int parts) {
  constexpr std::int64_t kLanes = Vec<T>::kLanes;
  const Kernel<T> kernel(work, shared);
  const ImagesRoom<T> room(work, base);
  const Images in{work.C, work.positions()}, out{work.O, work.positions_out()};
  const std::int64_t with_bias = ImagesRoom<T>::channels_of_bias(work);
  if (work.dweight) std::fill_n(room.dweight, work.O * work.C * work.kernel() * kLanes, T(0));
  if (work.dbias) std::fill_n(room.dbias, with_bias * kLanes, T(0));
  const T* bias = static_cast<const T*>(work.bias);
  const Range mine(work.tiles(), part, parts);
  for (std::int64_t tile = mine.begin; tile < mine.end; ++tile) {
    const std::int64_t first = tile * kAtOnce<T>, M = std::min(kAtOnce<T>, work.N - first);
    if (work.inputs) take_images(in, static_cast<const T*>(work.inputs) + first * in.size(), M, room.inputs);
    if (work.outputs) take_images(out, static_cast<const T*>(work.outputs) + first * out.size(), M, room.outputs);
    if (work.to_outputs) {
      convolve(*work.of_outputs, work.O, work.C * work.kernel(), kernel.forward, room.inputs,
               work.transposed ? nullptr : bias, room.made);
      give_images(out, room.made, M, static_cast<T*>(work.to_outputs) + first * out.size());
    }
    if (work.to_inputs) {
      convolve(*work.of_inputs, work.C, work.O * work.kernel(), kernel.backward, room.outputs,
               work.transposed ? bias : nullptr, room.made);
      give_images(in, room.made, M, static_cast<T*>(work.to_inputs) + first * in.size());
    }
    if (work.dweight) correlate(work, room.inputs, room.outputs, room.dweight);
    if (!work.dbias) continue;
    const T* with = work.transposed ? room.inputs : room.outputs;
    for (std::int64_t at = 0; at < (work.transposed ? in : out).positions; ++at) {
      for (std::int64_t c = 0; c < with_bias; ++c, with += kAtOnce<T>) {
        T* sum = room.dbias + c * kLanes;
        (Vec<T>::load(sum) + (Vec<T>::load(with) + Vec<T>::load(with + kLanes))).store(sum);
      }
    }
  }
}

// The sums of all parts, in their order; weights [O][C][kernel] of sums [kernel][O][C]
template <class T>
void add_images(const Convolved& work, void* base, std::size_t room_bytes, int part, int parts) {
  if (part > 0) return;
  const ImagesRoom<T> room(work, base);
  const auto add = [](T* sums, const T* more, std::int64_t count) {
    for (std::int64_t i = 0; i < count * Vec<T>::kLanes; ++i) sums[i] += more[i];
  };
  const std::int64_t pairs = work.O * work.C, taps = work.kernel(), with_bias = ImagesRoom<T>::channels_of_bias(work);
  for (int p = 1; p < parts; ++p) {
    const ImagesRoom<T> other(work, static_cast<char*>(base) + std::size_t(p) * room_bytes);
    if (work.dweight) add(room.dweight, other.dweight, pairs * taps);
    if (work.dbias) add(room.dbias, other.dbias, with_bias);
  }
  const auto total = [](const T* sums, std::int64_t i) { return sum(Vec<T>::load(sums + i * Vec<T>::kLanes)); };
  T *dweight = static_cast<T*>(work.dweight), *dbias = static_cast<T*>(work.dbias);
  for (std::int64_t i = 0; dweight && i < pairs * taps; ++i) {
    dweight[i] = total(room.dweight, i % taps * pairs + i / taps);
  }
  for (std::int64_t i = 0; dbias && i < with_bias; ++i) dbias[i] = total(room.dbias, i);
}
