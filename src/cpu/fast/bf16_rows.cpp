// Compiled for AVX-512 with BF16 only; see bf16_rows.h.
#include "cpu/fast/bf16_rows.h"

#include "cpu/fast/avx512_exp.h"

namespace lk::cpu::isa_bf16 {
namespace {

using Half = std::uint16_t;

// A mask of the first n lanes, at most 16.
inline __mmask16 first16(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1);
}
inline __m512 get(__mmask16 in, const Half* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void put(__mmask16 in, Half* p, __m512 x) {
  const __m256i narrow = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  if (in == 0xffff)  // a masked store takes longer
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow);
  else
    _mm256_mask_storeu_epi16(p, in, narrow);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return one / (one + exp16(-x));
}

void swiglu(Half* y, const Half* gate, const Half* up, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __mmask16 in = first16(n - j);
    const __m512 g = get(in, gate + j);
    put(in, y + j, g * sigmoid(g) * get(in, up + j));
  }
}

void swiglu_backward(Half* dgate, Half* dup, const Half* dy, const Half* gate, const Half* up,
                     std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __mmask16 in = first16(n - j);
    const __m512 g = get(in, gate + j), u = get(in, up + j), d = get(in, dy + j), s = sigmoid(g);
    put(in, dgate + j, d * u * s * (1.0f + g * (1.0f - s)));
    put(in, dup + j, d * g * s);
  }
}

float sum_exp(const Half* x, std::int64_t n, float shift) {
  __m512 total = _mm512_setzero_ps();
  for (std::int64_t j = 0; j < n; j += 16) {
    const __mmask16 in = first16(n - j);
    total = _mm512_mask_add_ps(total, in, total, exp16(get(in, x + j) - shift));
  }
  return _mm512_reduce_add_ps(total);
}

void softmax(Half* x, std::int64_t n, float lse, float scale, float off) {
  for (std::int64_t j = 0; j < n; j += 16) {
    const __mmask16 in = first16(n - j);
    put(in, x + j, scale * exp16(get(in, x + j) - lse) - off);
  }
}

void round(Half* y, const float* x, std::int64_t n) {
  const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff),
                quiet = _mm512_set1_epi32(0x400000);
  for (std::int64_t j = 0; j < n; j += 16) {
    const __mmask16 in = first16(n - j);
    const __m512 v = _mm512_maskz_loadu_ps(in, x + j);
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(half, odd));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i bits = _mm512_mask_or_epi32(up, nan, u, quiet);
    _mm256_mask_storeu_epi16(y + j, in, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
  }
}

}  // namespace

extern const Bf16Rows bf16_rows;
const Bf16Rows bf16_rows = {swiglu, swiglu_backward, sum_exp, softmax, round};

}  // namespace lk::cpu::isa_bf16
