// Philox4x32-10: a counter-based random generator. The same (key, counter) gives the same bits on
// the CPU and on the GPU, so a dropout mask is never stored: it is drawn again from its
// coordinates. Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LK_HOST_DEVICE inline
#endif

namespace lk {

struct Philox4 {
  std::uint32_t v[4];
};

// Where a random stream lives: which run, which micro-batch, which module.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;  // counts micro-batches over the whole run
  std::uint32_t site = 0;  // one number per module
};

LK_HOST_DEVICE Philox4 philox(std::uint64_t key, std::uint64_t counter_lo,
                              std::uint64_t counter_hi) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t c0 = static_cast<std::uint32_t>(counter_lo);
  std::uint32_t c1 = static_cast<std::uint32_t>(counter_lo >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(counter_hi);
  std::uint32_t c3 = static_cast<std::uint32_t>(counter_hi >> 32);
#if !defined(__CUDACC__)
#pragma GCC unroll 10  // or loops over elements do not vectorise
#endif
  for (int round = 0; round < 10; ++round) {
    std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c0;
    std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
    std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Four draws for elements 4*quad .. 4*quad+3 of a site's mask.
LK_HOST_DEVICE Philox4 philox_quad(const RandomKey& key, std::uint64_t quad) {
  return philox(key.seed, quad, (key.step << 24) ^ key.site);
}

// Uniform in [0, 1) with 24 bits: exactly representable in float.
LK_HOST_DEVICE float philox_uniform(std::uint32_t bits) {
  return static_cast<float>(bits >> 8) * (1.0f / 16777216.0f);
}

}  // namespace lk
