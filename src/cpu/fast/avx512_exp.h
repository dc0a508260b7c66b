// exp for the files that are compiled for AVX-512. Everything has internal linkage: see
// gemm_tile.h.
#pragma once

#include <immintrin.h>

namespace lk::cpu {
namespace {

// exp(x), relative error below 2^-21: fast_exp() of simd.h with the instruction that multiplies by
// 2^n, and one term fewer. Below -104 the result is 0, above 88.8 infinite; NaN stays NaN.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(90.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
  const __m512 n = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147182f), x);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return _mm512_scalef_ps(p, n);
}

}  // namespace
}  // namespace lk::cpu
