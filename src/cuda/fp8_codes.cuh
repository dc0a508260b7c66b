// E4M3 codes of numbers, and pairs of codes. Note [Pairs of codes] in tensor/fp8_product.h.
#pragma once

#include <cuda_fp8.h>

#include "cuda/code_decoders.cuh"
#include "cuda/launch.cuh"
#include "tensor/fp8_kernels.h"

namespace lk {

// The largest of magnitudes' bits: a NaN's are larger than all.
struct MaxBits {
  __device__ __forceinline__ std::uint32_t operator()(std::uint32_t a, std::uint32_t b) const {
    return max(a, b);
  }
  static __device__ __forceinline__ std::uint32_t identity() { return 0; }
};

__device__ __forceinline__ std::uint32_t codes_of(float a, float b, float c, float d) {
  const std::uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3),
                      high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}
__device__ __forceinline__ uint2 codes_of(const float (&v)[8]) {
  return make_uint2(codes_of(v[0], v[1], v[2], v[3]), codes_of(v[4], v[5], v[6], v[7]));
}

// What codes of v leave of it.
__device__ __forceinline__ void subtract_codes(float (&v)[8], const uint2& codes) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = codes::from_e4m3x2((i < 2 ? codes.x : codes.y) >> i % 2 * 16 & 0xffffu);
    v[2 * i] = __fsub_rn(v[2 * i], pair.x), v[2 * i + 1] = __fsub_rn(v[2 * i + 1], pair.y);
  }
}

// Eight numbers as pairs at `to`, `columns` apart: high, low, high, or high, high, low of a factor.
// `v` is lost.
__device__ __forceinline__ void store_pairs(std::uint8_t* to, int columns, bool of_factor,
                                            float (&v)[8]) {
  const uint2 high = codes_of(v);
  subtract_codes(v, high);
  const uint2 low = codes_of(v);
  *reinterpret_cast<uint2*>(to) = high;
  *reinterpret_cast<uint2*>(to + columns) = of_factor ? high : low;
  *reinterpret_cast<uint2*>(to + 2 * columns) = of_factor ? low : high;
}

// g of a factor with those bounds. Whole warps call it.
__device__ __forceinline__ float pair_factor(const float* bounds) {
  static_assert(Fp8Thin::kBounds == 64);
  const int lane = threadIdx.x % 32;
  const std::uint32_t most = __reduce_max_sync(
      ~0u, max(__float_as_uint(bounds[lane]), __float_as_uint(bounds[lane + 32])));
  if (most >= 0x7f800000u) return __uint_as_float(0x7fffffffu);
  return __uint_as_float((max(most >> 23, 31u) - 4) << 23);
}

}  // namespace lk
