// Chooses an instruction set at run time, and runs the phases of a step on threads.
#include "dispatch.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
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

struct Free {
  void operator()(void* p) const { std::free(p); }
};

std::unique_ptr<void, Free> allocate(std::size_t bytes) {
  void* p = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return std::unique_ptr<void, Free>(p);
}

std::int64_t parts_of(const Step& step) {
  const std::int64_t tiles = (step.N + step.tile - 1) / step.tile;
  return std::max<std::int64_t>(1, std::min<std::int64_t>(step.threads, tiles));
}

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
  return kernels.shared_bytes(step) + std::size_t(parts_of(step)) * kernels.private_bytes(step);
}

void mlp_sobolev(const Kernels& kernels, const Step& step) {
  const int parts = int(parts_of(step));
  const std::size_t shared_bytes = kernels.shared_bytes(step), own_bytes = kernels.private_bytes(step);
  const auto room = allocate(shared_bytes + std::size_t(parts) * own_bytes);
  char* shared = static_cast<char*>(room.get());
  char* own = shared + shared_bytes;
  // The runtime may give fewer threads than asked for (a nested region gives one): parts are what the result
  // depends on, so a thread takes every parts-th of them.
#pragma omp parallel num_threads(parts)
  {
    const int first = omp_get_thread_num(), step_by = omp_get_num_threads();
    for (int p = first; p < parts; p += step_by) kernels.pack(step, shared, p, parts);
#pragma omp barrier
    for (int p = first; p < parts; p += step_by)
      kernels.tiles(step, shared, own + std::size_t(p) * own_bytes, p, parts);
#pragma omp barrier
    for (int p = first; p < parts; p += step_by) kernels.reduce(step, own, own_bytes, p, parts);
  }
}

void draw_directions(const Kernels& kernels, const Step& step, void* out) {
  const auto room = allocate(std::size_t((step.P + 1) * step.D) * 2 * std::size_t(kernels.vector_bytes) + 128);
  kernels.draw(step, room.get(), out, 0, 1);
}

}  // namespace cpu
}  // namespace sk
