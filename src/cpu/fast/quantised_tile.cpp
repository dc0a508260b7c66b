// Compiled once per instruction set: LK_ISA is its namespace. See Note [Packed blocks].
#include "cpu/fast/quantised_tile.h"

#include <immintrin.h>

namespace lk::cpu::LK_ISA {
namespace {

// ---- a vector of rows: 8 or 16 lanes of 32 bits -------------------------------------------------

#if defined(__AVX512VNNI__)
constexpr int kLanes = 16, kMaxRows = 8;
constexpr const char* kName = "AVX-512 VNNI";
using Ints = __m512i;
using Floats = __m512;
inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
inline Ints zero() { return _mm512_setzero_si512(); }
inline Ints spread(std::int32_t x) { return _mm512_set1_epi32(x); }
inline Floats spread(float x) { return _mm512_set1_ps(x); }
inline Ints low_nibbles(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Ints high_nibbles(Ints x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Floats halves(const std::uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats unsigned_bytes(const std::uint8_t* p) {
  return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Floats signed_bytes(const std::uint8_t* p) {
  return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats add_product(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats subtract_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Ints add_dot(Ints sum, Ints u, Ints x) { return _mm512_dpbusd_epi32(sum, u, x); }
inline Ints flip_signs(Ints w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
#else
constexpr int kLanes = 8, kMaxRows = 4;
#if defined(__AVXVNNI__)
constexpr const char* kName = "AVX VNNI";
#else
constexpr const char* kName = "AVX2";
#endif
using Ints = __m256i;
using Floats = __m256;
inline Ints load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Ints zero() { return _mm256_setzero_si256(); }
inline Ints spread(std::int32_t x) { return _mm256_set1_epi32(x); }
inline Floats spread(float x) { return _mm256_set1_ps(x); }
inline Ints low_nibbles(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Ints high_nibbles(Ints x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Floats halves(const std::uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats unsigned_bytes(const std::uint8_t* p) {
  return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Floats signed_bytes(const std::uint8_t* p) {
  return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats add_product(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats subtract_product(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
#if defined(__AVXVNNI__)
inline Ints add_dot(Ints sum, Ints u, Ints x) { return _mm256_dpbusd_avx_epi32(sum, u, x); }
inline Ints flip_signs(Ints w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
#endif
#endif

// Broadcasts four bytes (along K) of one activation to every lane.
inline Ints four(const std::int8_t* x) {
  std::int32_t v;
  __builtin_memcpy(&v, x, sizeof v);
  return spread(v);
}

// ---- dots over a block: in each lane a row's sum of u x, u a weight's quanta --------------------

// How many sums are kept for one block: two where its halves have scales of their own.
template <BlockLayout L>
constexpr int kSums = L.scales == Scales::Halves ? 2 : 1;

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

// A block of nibbles: begin, add two of its dots, finish. Everything is exact in 32 bits.
inline Ints begin_nibbles(std::int32_t correction) { return spread(correction); }
inline Ints add_nibbles(Ints sum, Ints u, Ints x) { return add_dot(sum, u, x); }
inline Ints finish_nibbles(Ints sum, std::int32_t) { return sum; }
// sum + w0 x0 + w1 x1, bytes or signed bytes.
template <Quanta Q>
inline Ints add_two(Ints sum, Ints w0, Ints x0, Ints w1, Ints x1) {
  if constexpr (Q == Quanta::Signed) w0 = flip_signs(w0), w1 = flip_signs(w1);
  return add_dot(add_dot(sum, w0, x0), w1, x1);
}
constexpr int kSignedOffset = 128;

#else

// begin_nibbles() to add_two() without an instruction for such sums. A pair of products must fit in
// 16 bits: |x| <= 127, so eight pairs of nibbles do (15 * 127 * 2 * 8 = 30480), and so do two pairs
// of bytes (63 * 127 * 2 * 2 = 32004) and one of signed bytes (128 * 127 * 2 = 32512), whose sign
// moves to x.
inline Ints pairs(Ints u, Ints x) { return _mm256_maddubs_epi16(u, x); }  // to 16 bits, saturating
inline Ints quads(Ints p) { return _mm256_madd_epi16(p, _mm256_set1_epi16(1)); }

inline Ints begin_nibbles(std::int32_t) { return zero(); }
inline Ints add_nibbles(Ints sum, Ints u, Ints x) { return _mm256_add_epi16(sum, pairs(u, x)); }
inline Ints finish_nibbles(Ints sum, std::int32_t correction) {
  return _mm256_add_epi32(quads(sum), spread(correction));
}
template <Quanta Q>
inline Ints add_two(Ints sum, Ints w0, Ints x0, Ints w1, Ints x1) {
  if constexpr (Q == Quanta::Signed) {
    const Ints a = pairs(_mm256_abs_epi8(w0), _mm256_sign_epi8(x0, w0));
    const Ints b = pairs(_mm256_abs_epi8(w1), _mm256_sign_epi8(x1, w1));
    return _mm256_add_epi32(_mm256_add_epi32(sum, quads(a)), quads(b));
  } else {
    return _mm256_add_epi32(sum, quads(_mm256_add_epi16(pairs(w0, x0), pairs(w1, x1))));
  }
}
constexpr int kSignedOffset = 0;

#endif

// sums[m][h] = correction + dot, for M rows of x.
template <BlockLayout L, int M>
inline void dots(const std::uint8_t* quanta, const std::int8_t* const (&x)[M],
                 const std::int32_t* const (&correction)[M], Ints (&sums)[M][kSums<L>]) {
  if constexpr (L.quanta == Quanta::Nibbles) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] = begin_nibbles(correction[m][0]);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const Ints w = load(quanta + 64 * g), low = low_nibbles(w), high = high_nibbles(w);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        sums[m][0] = add_nibbles(sums[m][0], low, four(x[m] + 8 * g));
        sums[m][0] = add_nibbles(sums[m][0], high, four(x[m] + 8 * g + 4));
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] = finish_nibbles(sums[m][0], correction[m][0]);
  } else {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int h = 0; h < kSums<L>; ++h) sums[m][h] = spread(correction[m][h]);
#pragma GCC unroll 4
    for (int g = 0; g < 8; g += 2) {
      const Ints w0 = load(quanta + 64 * g), w1 = load(quanta + 64 * g + 64);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        Ints& sum = sums[m][g < 4 ? 0 : kSums<L> - 1];
        sum = add_two<L.quanta>(sum, w0, four(x[m] + 4 * g), w1, four(x[m] + 4 * g + 4));
      }
    }
  }
}

// ---- rows of x times one vector of rows of the weight -------------------------------------------

constexpr int kAhead = 4096;  // bytes

// `at` is the first row of the vector within the group, a multiple of kLanes.
template <BlockLayout L, int M>
void tile(const std::uint8_t* p, int at, const RoundedRows& x, std::int64_t first, float* out,
          std::int64_t out_row) {
  const std::int64_t K = x.n_blocks * kBlock;
  Floats total[M];
  const std::int8_t* q[M];
  const std::int32_t* correction[M];
  const float *d[M], *sum[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    total[m] = spread(0.0f);
    q[m] = x.q + (first + m) * K;
    correction[m] = x.correction + (first + m) * x.n_blocks * kSums<L>;
    d[m] = x.d + (first + m) * x.n_blocks;
    sum[m] = x.sum + (first + m) * x.n_blocks;
  }
  Floats super_d = spread(0.0f), super_m = super_d;
  for (std::int64_t b = 0; b < x.n_blocks; ++b) {
    // Few rows of x only read the weight: prefetch it a page ahead, where the processor's own
    // prefetcher stops.
    if constexpr (M <= 2)
      if (at == 0)
        for (int line = 0; line < L.scale_bytes() + L.quanta_bytes(); line += 64)
          __builtin_prefetch(p + kAhead + line);
    if constexpr (L.super()) {
      if (b % kSuperBlocks == 0) {
        super_d = halves(p + 2 * at);
        if constexpr (L.scales == Scales::Groups) super_m = halves(p + 32 + 2 * at);
        p += L.super_bytes();
      }
    }
    Floats scale[kSums<L>], minimum = super_m;
    if constexpr (L.scales == Scales::Groups) {
      scale[0] = times(super_d, unsigned_bytes(p + at));
      minimum = times(super_m, unsigned_bytes(p + 16 + at));
    } else if constexpr (L.scales == Scales::Halves) {
      scale[0] = times(super_d, signed_bytes(p + at));
      scale[1] = times(super_d, signed_bytes(p + 16 + at));
    } else {
      scale[0] = halves(p + 2 * at);
      if constexpr (L.scales == Scales::Minimum) minimum = halves(p + 32 + 2 * at);
    }
    Ints sums[M][kSums<L>];
    dots<L, M>(p + L.scale_bytes() + 4 * at, q, correction, sums);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int h = 0; h < kSums<L>; ++h)
        total[m] = add_product(times(scale[h], spread(*d[m])), to_floats(sums[m][h]), total[m]);
      if constexpr (L.scales == Scales::Minimum)
        total[m] = add_product(minimum, spread(*sum[m]), total[m]);
      if constexpr (L.scales == Scales::Groups)
        total[m] = subtract_product(minimum, spread(*sum[m]), total[m]);
      q[m] += kBlock, correction[m] += kSums<L>, ++d[m], ++sum[m];
    }
    p += L.scale_bytes() + L.quanta_bytes();
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store(out + (first + m) * out_row + at, total[m]);
}

template <BlockLayout L, int M>
void tiles(const std::uint8_t* group, const RoundedRows& x, std::int64_t& first, std::int64_t rows,
           float* out, std::int64_t out_row) {
  for (; rows - first >= M; first += M)
    for (int at = 0; at < kGroupRows; at += kLanes) tile<L, M>(group, at, x, first, out, out_row);
}

template <BlockLayout L>
void multiply_layout(const std::uint8_t* group, const RoundedRows& x, std::int64_t M, float* out,
                     std::int64_t out_row) {
  std::int64_t first = 0;
  if constexpr (kMaxRows >= 8) tiles<L, 8>(group, x, first, M, out, out_row);
  tiles<L, 4>(group, x, first, M, out, out_row);
  tiles<L, 2>(group, x, first, M, out, out_row);
  tiles<L, 1>(group, x, first, M, out, out_row);
}

using LayoutFunction = void (*)(const std::uint8_t*, const RoundedRows&, std::int64_t, float*,
                                std::int64_t);
constexpr LayoutFunction kFunctions[kLayouts] = {
    multiply_layout<kBlockLayouts[0]>, multiply_layout<kBlockLayouts[1]>,
    multiply_layout<kBlockLayouts[2]>, multiply_layout<kBlockLayouts[3]>,
    multiply_layout<kBlockLayouts[4]>, multiply_layout<kBlockLayouts[5]>,
    multiply_layout<kBlockLayouts[6]>, multiply_layout<kBlockLayouts[7]>,
};

void multiply(int layout, const std::uint8_t* group, const RoundedRows& x, std::int64_t M,
              float* out, std::int64_t out_row) {
  kFunctions[layout](group, x, M, out, out_row);
}

}  // namespace

extern const QuantisedTile quantised_tile;
const QuantisedTile quantised_tile = {kName, kSignedOffset, multiply};

}  // namespace lk::cpu::LK_ISA
