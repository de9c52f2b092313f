// The CPU kernels of one instruction set. CMake compiles this file once per set, with SK_ISA naming the namespace.
// Everything that is a template or inline is included inside that namespace: an inline function shared between sets
// could be kept in the copy that this machine cannot execute.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace sk {
namespace SK_ISA {

constexpr int kVectorBytes = SK_VECTOR_BYTES;
constexpr int kRows = SK_ROWS;

#include "../math/primitives.h"
#include "vector.h"
#include "vector_math.h"
#include "../math/generated.h"
#include "../switch.h"
#include "multiply.h"
#include "outer.h"
#include "directions.h"
#include "room.h"
#include "residuals.h"
#include "terms.h"
#include "streams.h"
#include "lockstep.h"
#include "heads.h"
#include "step.h"
#include "programs.h"
#include "jet_loss.h"
#include "jets.h"
#include "chain.h"
#include "recurrent.h"
#include "attention.h"
#include "activated.h"
#include "normed.h"
#include "convolved.h"

namespace {

// A block of rows ends within a line, of which the next one has the rest: lines of so many k stay in the cache.
constexpr std::int64_t kPackedAtOnce = 64;

// A part of a layer's weight, or of its transpose
template <class T>
void pack_blocks(const Layer& layer, bool transposed, const Matrix<T>& to, int part, int parts) {
  if (!to.data || !to.packed) return;
  const T* w = static_cast<const T*>(layer.weight.data);
  const std::int64_t out = layer.weight.stride[0], in = layer.weight.stride[1];
  const RowBlocks cut(to.rows);
  const Range mine(cut.blocks, part, parts);
  for (std::int64_t k = 0; k < to.K; k += kPackedAtOnce) {
    const Range some(k, std::min(k + kPackedAtOnce, to.K));
    for (std::int64_t b = mine.begin; b < mine.end; ++b) {
      const std::int64_t begin = cut.begin(b), rows = cut.begin(b + 1) - begin;
      pack_rows(w, transposed ? in : out, transposed ? out : in, to.K, begin, rows, some, const_cast<T*>(to.data));
    }
  }
}

// A part of all layers' weights for both directions, and the biases
template <class T, class Work>
void pack(const Work& work, void* base, int part, int parts) {
  const Shared<T> shared(work, base);
  for (std::int64_t l = 0; l < work.L; ++l) {
    const Layer& layer = layer_of(work, l);
    pack_blocks(layer, false, shared.forward[l], part, parts);
    pack_blocks(layer, true, shared.backward[l], part, parts);
    for (std::int64_t i = 0; part == 0 && shared.bias[l] && i < layer.n_out; ++i) {
      shared.bias[l][i] = at<T>(layer.bias, i);
    }
  }
  pack_blocks(layer_of(work, 0), true, shared.input, part, parts);
}

// A part's samples: a tile if there is one for each, else as many whole panels as the others have, or samples in
// lockstep. (With whole tiles one of two threads had up to a tenth more to do than the other.)
template <class T, class Work>
Range samples_of(const Work& work, int part, int parts) {
  std::int64_t each = kPanel<T>;
  if constexpr (std::is_same_v<Work, Step>) each = work.in_lockstep() ? 1 : each;
  if constexpr (!kInPasses<Work>) each = work.tiles() <= parts ? work.tile : each;
  const Range mine((work.N + each - 1) / each, part, parts);
  return {mine.begin * each, std::min(mine.end * each, work.N)};
}

// All of a part's tiles. Its sums of gradients begin with 0, if there is a place for them, or where the first tile that
// goes back sets that of a weight.
template <class T, template <class> class Room, template <class> class OneTile, class Work>
void tiles(const Work& work, void* base, void* room_base, int part, int parts) {
  const Shared<T> shared(work, base);
  const Room<T> room(work, room_base);
  const Range mine = samples_of<T>(work, part, parts);
  bool back = mine.begin < mine.end;
  if constexpr (std::is_same_v<Work, Step>) back = back && work.residuals != Residuals::kNone;
  for (std::int64_t l = 0; l < work.L; ++l) {
    const Layer& layer = layer_of(work, l);
    if (room.dweight[l] && !back) std::fill_n(room.dweight[l], Private<T>::gradient_size(layer), T(0));
    if (room.dbias[l]) std::fill_n(room.dbias[l], layer.n_out, T(0));
  }
  const std::int64_t size = kInPasses<Work> ? round_up(work.tile, kPanel<T>) : work.tile;
  OneTile<T> tile(work, shared, room);
  for (std::int64_t first = mine.begin; first < mine.end; first += size) {
    tile.run(first, std::min(size, mine.end - first));
  }
}

// What lies in the first part's room, in that of part p
template <class A>
A* of_part(A* array, int p, std::size_t workspace_bytes) {
  return reinterpret_cast<A*>(reinterpret_cast<std::uintptr_t>(array) + p * workspace_bytes);
}

// The gradients of some rows of weights from what all parts kept: of all layers' blocks of rows, one after the other, a
// part has as many as make its share of the work. So it has few layers, and needs of others what belongs to those.
template <class T>
void gather(const Step& step, const Private<T>& kept, std::size_t workspace_bytes, int part, int parts) {
  std::int64_t weights = 0, before = 0;
  for (std::int64_t l = 0; l < step.L; ++l) weights += step.layers[l].n_out * step.layers[l].n_in;
  const Range share(weights, part, parts);
  Samples<T>* all = of_part(kept.samples, part, workspace_bytes);
  for (std::int64_t l = 0; l < step.L; ++l) {
    const Layer& layer = step.layers[l];
    const RowBlocks cut(layer.n_out);
    const auto first_from = [&](std::int64_t weight) {
      std::int64_t block = 0;
      while (block < cut.blocks && before + cut.begin(block) * layer.n_in < weight) ++block;
      return block;
    };
    const Range mine(first_from(share.begin), first_from(share.end));
    before += layer.n_out * layer.n_in;
    if (mine.begin == mine.end) continue;
    Samples<T>* end = all;
    for (int p = 0; p < parts; ++p) {
      const std::int64_t M = std::min(step.tile, step.N - p * step.tile);
      for (int term = kValue; term <= (step.P ? kFirst : kValue); ++term) {
        Samples<T>* of_p = end;
        end = kept.append(step, Term(term), l, term == kValue || step.by_one_gradient() ? 1 : step.P, M, end);
        for (; of_p < end; ++of_p) {
          of_p->z = of_part(of_p->z, p, workspace_bytes);
          of_p->h = of_part(of_p->h, p, workspace_bytes);
        }
      }
    }
    outer_to_rows(all, end - all, layer.n_out, mine, static_cast<T*>(layer.dweight), layer.n_in);
  }
}

// Some rows of the strip from column j on of a part's gradient, put or added to those of the layer's
template <class T>
void add_strip(const Layer& layer, const T* strips, const Range& rows, std::int64_t j, bool first) {
  const std::int64_t width = strip<T>(layer.n_in, j), count = std::min(width, layer.n_in - j);
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const T* from = strips + j * layer.n_out + i * width;
    T* to = static_cast<T*>(layer.dweight) + i * layer.n_in + j;
    for (std::int64_t k = 0; k < count; ++k) to[k] = first ? from[k] : to[k] + from[k];
  }
}

// Rows of a strip lie one after the other: so many of them are read at once.
constexpr std::int64_t kRowsAtOnce = 16;

// Some rows of a layer's gradients, of those that all parts have: `dweight` and `dbias` are the first part's, or null.
template <class T>
void add_parts(const Layer& layer, T* dweight, T* dbias, std::size_t workspace_bytes, int part, int parts) {
  const Range mine(layer.n_out, part, parts);
  T* to = dbias ? static_cast<T*>(layer.dbias) : nullptr;
  for (std::int64_t i = mine.begin; dweight && i < mine.end; i += kRowsAtOnce) {
    const Range rows(i, std::min(i + kRowsAtOnce, mine.end));
    for (std::int64_t j = 0; j < layer.n_in; j += 2 * kPanel<T>) {
      for (int p = 0; p < parts; ++p) add_strip(layer, of_part(dweight, p, workspace_bytes), rows, j, p == 0);
    }
  }
  for (std::int64_t i = mine.begin; i < mine.end; ++i) {
    for (int p = 0; to && p < parts; ++p) {
      const T term = of_part(dbias, p, workspace_bytes)[i];
      to[i] = p ? to[i] + term : term;
    }
  }
}

// The loss and its terms, of which all parts have a sum
template <class T>
void add_terms(const Step& step, const TermsRoom<T>& room, std::size_t room_bytes, int parts) {
  if (!step.total || step.per_sample) return;
  double loss = 0;
  for (int term = 0; term < step.count_terms(); ++term) {
    double total = 0;
    for (int p = 0; p < parts; ++p) total += of_part(room.totals, p, room_bytes)[term];
    total *= step.share[term];
    if (step.terms) static_cast<T*>(step.terms)[term] = T(total);
    if (step.weight[term] != 0) loss += step.weight[term] * total;
  }
  static_cast<T*>(step.total)[0] = T(loss);
}

// One panel at a time through the very function of the step; only a panel's room is needed.
template <class T>
void draw(const Step& step, void* room, T* out, int part, int parts) {
  Arena arena(room);
  const std::int64_t n = step.drawn();
  T* v = arena.take<T>(n * kPanel<T>);
  const bool framed = step.directions.distribution == Distribution::kOrthonormal;
  T* frame = framed ? arena.take<T>(step.P * n * kPanel<T>) : nullptr;
  const Range mine((step.N + kPanel<T> - 1) / kPanel<T>, part, parts);
  for (std::int64_t panel = mine.begin; panel < mine.end; ++panel) {
    for (std::int64_t p = 0; p < step.P; ++p) {
      draw_direction(step.directions, panel * kPanel<T>, p, n, v, frame);
      T* to = out + (p * step.N + panel * kPanel<T>)*n;
      for (std::int64_t m = 0; m < kPanel<T> && panel * kPanel<T> + m < step.N; ++m) {
        for (std::int64_t d = 0; d < n; ++d) to[m * n + d] = v[d * kPanel<T> + m];
      }
    }
  }
}

// What all parts have of a loss of named derivatives
template <class T>
void add_losses(const JetLoss& loss, const LossRoom<T>& room, std::size_t room_bytes, int parts) {
  const auto of_all = [&](double* totals, std::int64_t i) {
    double total = 0;
    for (int p = 0; p < parts; ++p) total += of_part(totals, p, room_bytes)[i];
    return total;
  };
  double whole = 0;
  for (std::int64_t t = 0; t < loss.count_terms; ++t) {
    const double term = loss.terms[t].share * of_all(room.totals, t);
    static_cast<T*>(loss.each)[t] = T(term);
    whole += loss.terms[t].weight * term;
  }
  static_cast<T*>(loss.total)[0] = T(whole);
  T* dcoefficients = static_cast<T*>(loss.dcoefficients);
  for (std::int64_t k = 0; dcoefficients && k < loss.count_coefficients; ++k) {
    dcoefficients[k] = T(of_all(room.dcoefficients, k));
  }
}

template <class T, template <class> class Room, class Work>
void reduce(const Work& work, void* room_base, std::size_t room_bytes, int part, int parts) {
  const Room<T> room(work, room_base);
  if constexpr (std::is_same_v<Work, Step>) {
    if (work.gathers()) gather(work, room, room_bytes, part, parts);
  }
  for (std::int64_t l = 0; l < work.L; ++l) {
    add_parts(layer_of(work, l), room.dweight[l], room.dbias[l], room_bytes, part, parts);
  }
  if (part > 0) return;
  if constexpr (std::is_same_v<Work, Step>) add_terms(work, room.of_terms, room_bytes, parts);
  if constexpr (std::is_same_v<Work, Jets>) {
    if (work.loss) add_losses<T>(*work.loss, room.loss, room_bytes, parts);
    if (work.step) add_terms(*work.step, room.terms, room_bytes, parts);
  }
}

}  // namespace

#define SK_DTYPE(call_float, call_double) (step.dtype == Dtype::kFloat64 ? call_double : call_float)
#define SK_FLOAT32(call_float, call_double) call_float  // of what has no float64

#define SK_PHASES(SK_DTYPE, Work, Room, Tile)                                                                         \
  {                                                                                                                   \
      [](const Work& step) {                                                                                          \
        return SK_DTYPE(Shared<float>(step, nullptr).bytes, Shared<double>(step, nullptr).bytes);                     \
      },                                                                                                              \
      [](const Work& step) { return SK_DTYPE(Room<float>(step, nullptr).bytes, Room<double>(step, nullptr).bytes); }, \
      [](const Work& step, void* shared, int part, int parts) {                                                       \
        SK_DTYPE(pack<float>(step, shared, part, parts), pack<double>(step, shared, part, parts));                    \
      },                                                                                                              \
      [](const Work& step, void* shared, void* room, int part, int parts) {                                           \
        SK_DTYPE((tiles<float, Room, Tile>(step, shared, room, part, parts)),                                         \
                 (tiles<double, Room, Tile>(step, shared, room, part, parts)));                                       \
      },                                                                                                              \
      [](const Work& step, void* room, std::size_t bytes, int part, int parts) {                                      \
        SK_DTYPE((reduce<float, Room>(step, room, bytes, part, parts)),                                               \
                 (reduce<double, Room>(step, room, bytes, part, parts)));                                             \
      },                                                                                                              \
  }

constexpr Phases<Convolved> kConvolved{
    [](const Convolved& work) { return Kernel<float>(work, nullptr).bytes; },
    [](const Convolved& work) { return ImagesRoom<float>(work, nullptr).bytes; },
    pack_weights<float>,
    convolve_tiles<float>,
    add_images<float>,
};

extern const Kernels kKernels;
const Kernels kKernels = {
    SK_NAME,
    kVectorBytes,
    SK_PHASES(SK_DTYPE, Step, Private, Tile),
    SK_PHASES(SK_DTYPE, Jets, JetRoom, JetTile),
    SK_PHASES(SK_DTYPE, Chain, ChainRoom, ChainTile),
    SK_PHASES(SK_FLOAT32, Recurrent, RecurrentRoom, RecurrentTile),
    kConvolved,
    [](const Chain& step) { return SK_DTYPE(ChainKept<float>(step).sizes, ChainKept<double>(step).sizes); },
    [](const Activated& step, int part, int parts) {
      SK_DTYPE(activated<float>(step, part, parts), activated<double>(step, part, parts));
    },
    [](const Normed& step, double* sums, int part, int parts) {
      SK_DTYPE(normed<float>(step, sums, part, parts), normed<double>(step, sums, part, parts));
    },
    attention<float>,
    [](const Step& step, void* room, void* out, int part, int parts) {
      SK_DTYPE(draw(step, room, static_cast<float*>(out), part, parts),
               draw(step, room, static_cast<double*>(out), part, parts));
    },
};

}  // namespace SK_ISA
}  // namespace sk
