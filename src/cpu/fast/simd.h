// Vectorised row kernels without intrinsics: plain loops that the compiler vectorises, cloned for
// several instruction sets and chosen when the program is loaded.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tensor/dtype.h"

// Compiles the function that it precedes for AVX-512, for AVX2 and for the baseline. Parallel
// regions are outlined before cloning, so they belong outside such functions. Sanitizers and clones
// do not mix.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(LK_NO_CLONES)
#define LK_SIMD \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define LK_SIMD __attribute__((noinline))
#endif
// Precedes what such functions call: it must become part of each clone.
#define LK_INLINE inline __attribute__((always_inline))

namespace lk::cpu {

// bf16 <-> float without branches, so that loops vectorise.
LK_INLINE double widen(double x) { return x; }
LK_INLINE float widen(float x) { return x; }
LK_INLINE float widen(bf16 x) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}
template <class T>
LK_INLINE T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    const std::uint32_t u = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t nearest = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    bf16 y;
    y.bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : nearest);
    return y;
  }
}

// Eight floats that the compiler keeps in a register.
using Eight = float __attribute__((vector_size(32)));

LK_INLINE Eight load_eight(const float* x) {
  Eight y;
  __builtin_memcpy(&y, x, sizeof y);
  return y;
}
LK_INLINE Eight load_eight(const bf16* x) {
  using Ints = std::uint32_t __attribute__((vector_size(32)));
  using Shorts = std::uint16_t __attribute__((vector_size(16)));
  Shorts s;
  __builtin_memcpy(&s, x, sizeof s);
  // std::bit_cast is a function, which unoptimised builds call: it is compiled for another
  // processor than its caller and takes vectors in other registers.
  return __builtin_bit_cast(Eight, __builtin_convertvector(s, Ints) << 16);
}
LK_INLINE float add_up(Eight x) {
  using Order = std::int32_t __attribute__((vector_size(32)));
  const Eight a = x + __builtin_shuffle(x, Order{4, 5, 6, 7, 0, 1, 2, 3});
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// exp(x), relative error below 2^-23: x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts (Cody
// & Waite 1980), Taylor's polynomial in r, 2^n by bits. Below -87.3 the result is 0, above 88.7
// infinite; NaN stays NaN.
LK_INLINE float fast_exp(float x) {
  const float low = -87.33654f, high = 89.0f;
  float t = x < low ? low : x;  // NaN passes: comparisons are false
  t = t > high ? high : t;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = t * 1.44269504f + magic, n = shifted - magic;
  const float r = (t - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n as a product of two factors: n = 128 would not fit in one exponent.
  const std::int32_t i =
      __builtin_bit_cast(std::int32_t, shifted) - __builtin_bit_cast(std::int32_t, magic);
  const std::int32_t half = i >> 1;
  const float y = p * __builtin_bit_cast(float, (half + 127) << 23) *
                  __builtin_bit_cast(float, (i - half + 127) << 23);
  return x < low ? 0.0f : y;
}

}  // namespace lk::cpu
