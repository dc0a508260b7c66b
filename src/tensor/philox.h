// Philox4x32: a counter-based random generator. The same (key, counter) gives the same bits on
// the CPU and on the GPU, so a dropout mask need not be stored: it can be drawn again from its
// coordinates. Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11.
#pragma once

#include <cmath>
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

// Identifies a random stream: which run, which micro-batch, which module.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t step = 0;  // counts micro-batches over the whole run
  std::uint32_t site = 0;  // one number per module
  // If not null, a number in the device's memory that is added to `step`, so that recorded work
  // draws new numbers each time it runs. Only dropout reads it.
  const std::int32_t* first_step = nullptr;

  // The key with first_step's number added to `step`; callable where that memory can be read.
  LK_HOST_DEVICE RandomKey resolved() const {
    RandomKey key = *this;
    if (first_step) key.step += static_cast<std::uint64_t>(*first_step);
    key.first_step = nullptr;
    return key;
  }
};

template <int ROUNDS = 10>
LK_HOST_DEVICE Philox4 philox(std::uint64_t key, std::uint64_t counter_lo,
                              std::uint64_t counter_hi) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint32_t c0 = static_cast<std::uint32_t>(counter_lo);
  std::uint32_t c1 = static_cast<std::uint32_t>(counter_lo >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(counter_hi);
  std::uint32_t c3 = static_cast<std::uint32_t>(counter_hi >> 32);
#if !defined(__CUDACC__)
#pragma GCC unroll 10  // otherwise loops over elements do not vectorise
#endif
  for (int round = 0; round < ROUNDS; ++round) {
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

// The numbers at index n of a (resolved) key's stream.
LK_HOST_DEVICE Philox4 philox_at(const RandomKey& key, std::uint64_t n) {
  return philox(key.seed, n, (key.step << 24) ^ key.site);
}

// A dropout mask: element i owns 16 bits of octet i / 8, the lower half of word i % 8 / 2 if i is
// even, and is kept if they are not below the threshold. So p is rounded to 1 / 65536. Seven rounds
// are the fewest that pass all tests of randomness (table 2 of the source); on a GPU, drawing masks
// costs more than the rest of dropout.
LK_HOST_DEVICE Philox4 philox_octet(const RandomKey& key, std::uint64_t octet) {
  return philox<7>(key.seed, octet, (key.step << 24) ^ key.site);
}
inline std::uint32_t dropout_threshold(float p) {
  const auto nearest = static_cast<std::uint32_t>(std::lround(p * 65536.0f));
  return nearest < 65535 ? nearest : 65535;
}
LK_HOST_DEVICE bool dropout_keeps(const RandomKey& key, std::uint64_t element,
                                  std::uint32_t threshold) {
  const std::uint32_t word = philox_octet(key, element / 8).v[element % 8 / 2];
  return (element % 2 ? word >> 16 : word & 0xffffu) >= threshold;
}

// Uniform in [0, 1) with 24 bits: exactly representable in float.
LK_HOST_DEVICE float philox_uniform(std::uint32_t bits) {
  return static_cast<float>(bits >> 8) * (1.0f / 16777216.0f);
}

}  // namespace lk
