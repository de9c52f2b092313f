// Random directions (docs/math.md, section 8): four columns of a direction at a time, the integers of csrc/cpu.
#pragma once

#include "primitives.cuh"

namespace sk::cuda {

// Key, offset and first sample, in shared memory, since registers are few. Known when the step is launched, or, so that
// a graph draws anew at each replay, read from the device's memory.
SK_INLINE void store_seed(const Directions& from, std::uint32_t* to) {
  const std::uint64_t key = from.seed_at ? std::uint64_t(from.seed_at[0]) : from.seed;
  to[0] = std::uint32_t(key), to[1] = std::uint32_t(key >> 32);
  const std::uint64_t place = from.seed_at ? std::uint64_t(from.seed_at[1]) : from.place;
  to[2] = std::uint32_t(place), to[3] = std::uint32_t(place >> 32);
}

SK_INLINE uint4 philox(const std::uint32_t* seed, std::uint32_t sample, std::uint32_t p, std::uint32_t block) {
  uint4 c = make_uint4(sample, p, block, seed[2]);
  std::uint32_t k0 = seed[0], k1 = seed[1];
#pragma unroll 5  // all ten take registers that there are not
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
SK_INLINE float4 draw(Distribution kind, const std::uint32_t* seed, std::uint32_t sample, int p, int d, int n) {
  float v[4];
  if (kind == Distribution::kBasis) {
    for (int i = 0; i < 4; ++i) v[i] = d + i == p;
    return make_float4(v[0], v[1], v[2], v[3]);
  }
  const bool coordinate = kind == Distribution::kCoordinate;
  const uint4 w = philox(seed, sample, p, coordinate ? 0 : d / 4);
  if (coordinate) {
    const int column = __umulhi(w.x, n);
    for (int i = 0; i < 4; ++i) v[i] = d + i == column;
  } else if (kind == Distribution::kRademacher) {
    const std::uint32_t words[4] = {w.x, w.y, w.z, w.w};
    for (int i = 0; i < 4; ++i) v[i] = words[i] >> 31 ? 1.0f : -1.0f;
  } else {  // kNormal or kSphere: `draws` of from_step.h lets no other through
    normals(w.x, w.y, v[0], v[1]);
    normals(w.z, w.w, v[2], v[3]);
  }
  for (int i = 0; i < 4; ++i) v[i] = d + i < n ? v[i] : 0.0f;
  return make_float4(v[0], v[1], v[2], v[3]);
}

}  // namespace sk::cuda
