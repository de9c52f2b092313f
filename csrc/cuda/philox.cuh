// Random directions (docs/math.md, section 8): four columns of a direction at a time, the integers of csrc/cpu.
#pragma once

#include "primitives.cuh"

namespace sk::cuda {

// Known when the step is launched, or, so that a graph draws anew at each replay, read from the device's memory
struct Seed {
  std::uint32_t k0, k1, offset;
};

SK_INLINE Seed seed_of(const Directions& from) {
  const std::uint64_t key = from.seed_at ? std::uint64_t(from.seed_at[0]) : from.seed;
  const std::uint32_t offset = from.seed_at ? std::uint32_t(from.seed_at[1]) : from.offset;
  return {std::uint32_t(key), std::uint32_t(key >> 32), offset};
}

SK_INLINE uint4 philox(const Seed& seed, std::uint32_t sample, std::uint32_t p, std::uint32_t block) {
  uint4 c = make_uint4(sample, p, block, seed.offset);
  std::uint32_t k0 = seed.k0, k1 = seed.k1;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const std::uint32_t a = __umulhi(0xD2511F53u, c.x), b = __umulhi(0xCD9E8D57u, c.z);
    c = make_uint4(b ^ c.y ^ k0, 0xCD9E8D57u * c.z, a ^ c.w ^ k1, 0xD2511F53u * c.x);
  }
  return c;
}

// The upper 23 bits as the middle of one of 2^23 intervals of (0, 1)
SK_INLINE float uniform(std::uint32_t w) { return (float(w >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// Two normals by Box and Muller; the angle in half turns
SK_INLINE void normals(std::uint32_t w0, std::uint32_t w1, float& a, float& b) {
  const float radius = sqrtf(-2.0f * logf(uniform(w0)));
  float sine, cosine;
  sincospif(2.0f * (uniform(w1) - 0.5f), &sine, &cosine);
  a = radius * cosine, b = radius * sine;
}

// Columns d to d + 3 of direction p of n numbers, before it is scaled to unit length and by `magnitude`
SK_INLINE void draw(const Directions& from, const Seed& seed, std::int64_t sample, int p, int d, int n, float (&v)[4]) {
  const Distribution kind = from.distribution;
  if (kind == Distribution::kBasis) {
    for (int i = 0; i < 4; ++i) v[i] = d + i == p;
    return;
  }
  const bool coordinate = kind == Distribution::kCoordinate;
  const uint4 w = philox(seed, from.shared ? 0u : std::uint32_t(sample), p, coordinate ? 0 : d / 4);
  if (coordinate) {
    const int column = __umulhi(w.x, n);
    for (int i = 0; i < 4; ++i) v[i] = d + i == column;
  } else if (kind == Distribution::kRademacher) {
    const std::uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; ++i) v[i] = words[i] >> 31 ? 1.0f : -1.0f;
  } else {  // kNormal or kSphere: `draws` of layout.h lets no other through
    normals(w.x, w.y, v[0], v[1]);
    normals(w.z, w.w, v[2], v[3]);
  }
  for (int i = 0; i < 4; ++i) v[i] = d + i < n ? v[i] : 0.0f;
}

}  // namespace sk::cuda
