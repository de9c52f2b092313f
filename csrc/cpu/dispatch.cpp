// Chooses an instruction set at run time, and runs its phases on threads.
#include "dispatch.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace sk {

#define SK_DECLARE(isa)          \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
SK_DECLARE(baseline)
#ifdef SK_X86
SK_DECLARE(avx2)
SK_DECLARE(avx512)
#endif

namespace cpu {
namespace {

// Working memory, kept by the thread that calls for its next call: the system hands out fresh pages one fault at a
// time, which took a tenth of a wide step. Huge pages where there are any: a wide layer's weights outgrow the TLB
// otherwise.
class Room {
 public:
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(base_); }

  char* at_least(std::size_t bytes) {
    if (bytes <= bytes_) return base_;
    std::free(base_);
    bytes_ = 0;
    const std::size_t page = bytes < kHugePage ? 64 : kHugePage, size = (bytes + page - 1) / page * page;
    base_ = static_cast<char*>(std::aligned_alloc(page, size));
    if (!base_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (page == kHugePage) madvise(base_, size, MADV_HUGEPAGE);  // advice: whether it is taken changes no number
#endif
    bytes_ = size;
    return base_;
  }

 private:
  static constexpr std::size_t kHugePage = std::size_t(2) << 20;
  char* base_ = nullptr;
  std::size_t bytes_ = 0;
};

thread_local Room room;

// What threads share out of a step or of named derivatives, and what they take.
struct Shares {
  int parts;
  std::size_t packed, workspace;  // bytes of the weights packed once, and of a part's own room
  bool apart;                     // each part packs the weights for itself

  template <class Work>
  Shares(const Phases<Work>& phases, const Work& work)
      : packed(phases.shared_bytes(work)), workspace(phases.private_bytes(work)) {
    parts = int(std::max<std::int64_t>(1, std::min<std::int64_t>(work.threads, work.tiles())));
    apart = parts > 1 && work.tiles() == parts && packed <= kPackedApart;
  }
  std::size_t bytes() const { return (apart ? parts : 1) * packed + parts * workspace; }

  // A tile reads a weight only a few times: to fetch those that another core has packed takes longer than to pack
  // them, as long as they stay in the second-level cache.
  static constexpr std::size_t kPackedApart = std::size_t(1) << 20;
};

template <class Work>
void run(const Phases<Work>& phases, const Work& work) {
  const Shares shares(phases, work);
  const int parts = shares.parts;
  char* packed = room.at_least(shares.bytes());
  char* workspace = packed + (shares.apart ? parts : 1) * shares.packed;
  const auto packed_of = [&](int p) { return packed + (shares.apart ? p : 0) * shares.packed; };
  // The runtime may give fewer threads than asked for (a nested region gives one): parts are what the result
  // depends on, so a thread takes every parts-th of them.
#pragma omp parallel num_threads(parts)
  {
    const int first = omp_get_thread_num(), step_by = omp_get_num_threads();
    for (int p = first; p < parts; p += step_by)
      phases.pack(work, packed_of(p), shares.apart ? 0 : p, shares.apart ? 1 : parts);
    if (!shares.apart) {
#pragma omp barrier
    }
    for (int p = first; p < parts; p += step_by)
      phases.tiles(work, packed_of(p), workspace + std::size_t(p) * shares.workspace, p, parts);
#pragma omp barrier
    for (int p = first; p < parts; p += step_by) phases.reduce(work, workspace, shares.workspace, p, parts);
  }
}

// A step of order 2 as the streams that it was told: those of all derivatives, which go with its targets and losses;
// or, with results, y and second derivatives summed over directions.
struct Told {
  std::vector<JetLayer> layers;
  std::vector<Place> out, cotangents;
  Jets jets;

  explicit Told(const Step& step) : layers(step.streams->layers, step.streams->layers + step.L), jets(*step.streams) {
    for (std::int64_t l = 0; l < step.L; ++l) layers[std::size_t(l)].layer = step.layers[l];
    const std::int64_t size = step.dtype == Dtype::kFloat64 ? 8 : 4;
    const auto add = [&](std::vector<Place>& to, const void* data, std::int64_t sample, std::int64_t output) {
      char* first = static_cast<char*>(const_cast<void*>(data));
      for (std::int64_t o = 0; o < step.O; ++o) to.push_back({first ? first + o * output * size : nullptr, sample});
    };
    for (const void* to : {step.y, step.second}) add(out, to, step.O, 1);
    for (const int term : {0, 2}) {
      const Target& from = step.target[term];
      const bool there = from.kind != TargetKind::kNone;
      add(cotangents, there ? from.data.data : nullptr, from.data.stride[0], from.data.stride[1]);
    }
    jets.layers = layers.data();
    jets.N = step.N;
    jets.P = step.P;
    jets.W = step.W;
    jets.x = step.x;
    jets.along = step.directions;
    jets.step = jets.results ? nullptr : &step;
    jets.out = out.data();
    jets.cotangents = step.gradients ? cotangents.data() : nullptr;
    jets.dx = step.dx;
    jets.dv = step.dgiven;
    jets.tile = step.tile;
    jets.threads = step.threads;
    jets.in_place = step.in_place;
  }
};

}  // namespace

const std::vector<const Kernels*>& instruction_sets() {
  static const std::vector<const Kernels*> sets = [] {
    std::vector<const Kernels*> found;
#ifdef SK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::kKernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kKernels);
#endif
    found.push_back(&baseline::kKernels);
    return found;
  }();
  return sets;
}

std::size_t working_memory(const Kernels& kernels, const Step& step) {
  return step.streams ? Shares(kernels.jets, Told(step).jets).bytes() : Shares(kernels.step, step).bytes();
}

void mlp_sobolev(const Kernels& kernels, const Step& step) {
  step.streams ? run(kernels.jets, Told(step).jets) : run(kernels.step, step);
}

void mlp_jets(const Kernels& kernels, const Jets& jets) { run(kernels.jets, jets); }

void run_chain(const Kernels& kernels, const Chain& chain) { run(kernels.chain, chain); }

void run_recurrent(const Kernels& kernels, const Recurrent& recurrent) { run(kernels.recurrent, recurrent); }

void run_convolved(const Kernels& kernels, const Convolved& convolved) { run(kernels.convolved, convolved); }

// How many threads share so many numbers; of fewer than so many each would wait longer than it works.
static int parts_of(std::int64_t numbers, int threads) {
  constexpr std::int64_t kShare = 1 << 15;
  return int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, numbers / kShare)));
}

void run_activated(const Kernels& kernels, const Activated& activated) {
  const int parts = parts_of(activated.n * (1 + activated.S), activated.threads);
  if (parts == 1) return kernels.activated(activated, 0, 1);
#pragma omp parallel for num_threads(parts) schedule(static)
  for (int p = 0; p < parts; ++p) kernels.activated(activated, p, parts);
}

void run_attention(const Kernels& kernels, const Attention& attention) {
  const int parts = parts_of(attention.B * attention.L * attention.M * (1 + attention.S), attention.threads);
  if (parts == 1) return kernels.attention(attention, 0, 1);
#pragma omp parallel for num_threads(parts) schedule(static)
  for (int p = 0; p < parts; ++p) kernels.attention(attention, p, parts);
}

void run_normed(const Kernels& kernels, const Normed& normed) {
  const int parts = parts_of(normed.rows * normed.n * (1 + normed.S), normed.threads);
  const std::size_t weights = normed.back() ? std::size_t(normed.weights()) : 0;
  std::vector<double> sums(2 * weights * std::size_t(parts));
  if (parts == 1) {
    kernels.normed(normed, sums.data(), 0, 1);
  } else {
#pragma omp parallel for num_threads(parts) schedule(static)
    for (int p = 0; p < parts; ++p) kernels.normed(normed, sums.data() + 2 * weights * std::size_t(p), p, parts);
  }
  for (std::size_t which = 0; which < 2; ++which) {
    void* to = which ? normed.bar_bias : normed.bar_weight;
    for (std::size_t i = 0; to && i < weights; ++i) {
      double total = 0;
      for (std::size_t p = 0; p < std::size_t(parts); ++p) total += sums[(2 * p + which) * weights + i];
      if (normed.dtype == Dtype::kFloat64) {
        static_cast<double*>(to)[i] = total;
      } else {
        static_cast<float*>(to)[i] = float(total);
      }
    }
  }
}

void draw_directions(const Kernels& kernels, const Step& step, void* out) {
  const std::int64_t frame = step.directions.distribution == Distribution::kOrthonormal ? step.P : 0;
  const std::size_t bytes = std::size_t((frame + 1) * step.drawn()) * std::size_t(kernels.vector_bytes) + 128;
  kernels.draw(step, room.at_least(bytes), out, 0, 1);
}

}  // namespace cpu
}  // namespace sk
