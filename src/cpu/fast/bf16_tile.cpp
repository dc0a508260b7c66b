// Compiled for AVX-512 with BF16 only; see bf16_tile.h.
#include "cpu/fast/bf16_tile.h"

#include "cpu/fast/avx512_exp.h"
#include "cpu/fast/gemm_tile.h"

namespace lk::cpu::isa_bf16 {
namespace {

using Half = std::uint16_t;

// Vectors of 16 or 8 floats; eight columns (a LoRA factor of rank 8) fill the short one.
template <int>
struct Lanes;
template <>
struct Lanes<16> {
  using F = __m512;
  using I = __m512i;
  using Mask = __mmask16;
  static I load(const Half* p) { return _mm512_loadu_si512(p); }
  static I spread(std::uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static F dot(F sum, I a, I b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static F get(Mask m, const float* p) { return _mm512_maskz_loadu_ps(m, p); }
  static F get(Mask m, const Half* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void put(Mask m, float* p, F x) { _mm512_mask_storeu_ps(p, m, x); }
  static void put(Mask m, Half* p, F x) {
    _mm256_mask_storeu_epi16(p, m, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
};
template <>
struct Lanes<8> {
  using F = __m256;
  using I = __m256i;
  using Mask = __mmask8;
  static I load(const Half* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
  static I spread(std::uint32_t pair) { return _mm256_set1_epi32(static_cast<int>(pair)); }
  static F dot(F sum, I a, I b) {
    return _mm256_dpbf16_ps(sum, reinterpret_cast<__m256bh>(a), reinterpret_cast<__m256bh>(b));
  }
  static F get(Mask m, const float* p) { return _mm256_maskz_loadu_ps(m, p); }
  static F get(Mask m, const Half* p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(m, p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static void put(Mask m, float* p, F x) { _mm256_mask_storeu_ps(p, m, x); }
  static void put(Mask m, Half* p, F x) {
    _mm_mask_storeu_epi16(p, m, reinterpret_cast<__m128i>(_mm256_cvtneps_pbh(x)));
  }
};

// p (+)= 32 numbers; cheaper than two masked stores.
inline void put32(float* p, __m512 x, __m512 y, bool add) {
  _mm512_storeu_ps(p, add ? x + _mm512_loadu_ps(p) : x);
  _mm512_storeu_ps(p + 16, add ? y + _mm512_loadu_ps(p + 16) : y);
}
inline void put32(Half* p, __m512 x, __m512 y, bool add) {
  if (add) {
    x += Lanes<16>::get(0xffff, p);
    y += Lanes<16>::get(0xffff, p + 16);
  }
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y, x)));
}

inline std::int64_t min(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
// A mask of the first n lanes, at most 16 (or 32).
inline __mmask16 first16(std::int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

inline std::uint32_t pair_at(const Half* p) {
  std::uint32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return pair;
}

// Multiplies M rows by NV vectors of a panel. Sums stay in registers; after kChain terms they move
// to `total`, as in gemm_tile.cpp.
template <int W, int M, int NV, class Out>
void tile(std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b, Out* out, std::int64_t out_row,
          float alpha, bool add) {
  using L = Lanes<W>;
  using F = typename L::F;
  constexpr int kQuads = (M + 3) / 4;  // few base pointers; the rest is addressing
  const Half* row[kQuads];
#pragma GCC unroll 4
  for (int q = 0; q < kQuads; ++q) row[q] = a.data + 4 * q * a.row;
  const Half* panel = b.data;
  F total[M][NV];
  auto step = [&](F(&sum)[M][NV], auto&& left) __attribute__((always_inline)) {
    typename L::I right[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) right[v] = L::load(panel + 2 * W * v);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const typename L::I x = L::spread(left(row[i / 4] + i % 4 * a.row));
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[i][v] = L::dot(sum[i][v], x, right[v]);
    }
    panel += b.row;
#pragma GCC unroll 4
    for (int q = 0; q < kQuads; ++q) row[q] += a.col;
  };
  auto finish = [&](F(&sum)[M][NV]) __attribute__((always_inline)) {
    if (alpha != 1.0f)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i][v] *= alpha;
    if constexpr (NV == 2)
      if (n >= 2 * W) {
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) put32(out + i * out_row, sum[i][0], sum[i][1], add);
        return;
      }
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      const auto mask = static_cast<typename L::Mask>(first16(n - W * v));
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        Out* to = out + i * out_row + W * v;
        L::put(mask, to, add ? sum[i][v] + L::get(mask, to) : sum[i][v]);
      }
    }
  };
  for (std::int64_t k = 0;;) {
    F sum[M][NV] = {};
    const bool first = k == 0;
    const std::int64_t end = min(K, k + kChain);
    for (; k + 1 < end; k += 2) step(sum, [](const Half* p) { return pair_at(p); });
    if (k < end) step(sum, [](const Half* p) { return static_cast<std::uint32_t>(*p); }), ++k;
    if (!first)
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i][v] += total[i][v];
    if (k == K) return finish(sum);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) total[i][v] = sum[i][v];
  }
}

// Multiplies 1 <= m <= M rows by NV vectors of a panel.
template <int W, int M, int NV, class Out>
void tile_of(std::int64_t m, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b, Out* out,
             std::int64_t out_row, float alpha, bool add) {
  if (m == M)
    tile<W, M, NV>(n, K, a, b, out, out_row, alpha, add);
  else if constexpr (M > 1)
    tile_of<W, M - 1, NV>(m, n, K, a, b, out, out_row, alpha, add);
}

// Splits the rows into tiles as equal as possible; each tile meets all panels.
template <class Out>
void multiply(std::int64_t rows, std::int64_t n, std::int64_t K, Bf16Left a, Bf16Panels b, Out* out,
              std::int64_t out_row, float alpha, bool add) {
  constexpr int kRows = 12, kWide = Bf16Tile::kWide;
  for (std::int64_t tiles = (rows + kRows - 1) / kRows, m; tiles > 0; --tiles, rows -= m) {
    m = (rows + tiles - 1) / tiles;
    Bf16Panels panel = b;
    for (std::int64_t j = 0; j < n; j += kWide, panel.data += b.next) {
      if (n - j <= 8)
        tile_of<8, kRows, 1>(m, n - j, K, a, panel, out + j, out_row, alpha, add);
      else if (n - j <= 16)
        tile_of<16, kRows, 1>(m, n - j, K, a, panel, out + j, out_row, alpha, add);
      else
        tile_of<16, kRows, 2>(m, n - j, K, a, panel, out + j, out_row, alpha, add);
    }
    a.data += m * a.row;
    out += m * out_row;
  }
}

// ---- packing ----------------------------------------------------------------------------------

// Interleaves two rows of 16 into 16 pairs.
inline __m512i interleave(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// Source indices of the 32 words of the first (upper = 0) or second half of 64 interleaved words.
inline __m512i interleaving(int upper) {
  alignas(64) Half word[32];
  for (int i = 0; i < 32; ++i) word[i] = static_cast<Half>(16 * upper + i / 2 + i % 2 * 32);
  return _mm512_load_si512(word);
}

void pack_rows(const Half* b, std::int64_t stride, std::int64_t K, std::int64_t n,
               std::int64_t columns, Half* packed) {
  const __m512i lower = interleaving(0), upper = interleaving(1);
  for (std::int64_t k = 0; k < K; k += 2, b += 2 * stride, packed += 2 * columns) {
    const bool whole = k + 1 < K;
    std::int64_t j = 0;
    for (; whole && j + 32 <= n; j += 32) {
      const __m512i even = _mm512_loadu_si512(b + j), odd = _mm512_loadu_si512(b + stride + j);
      _mm512_storeu_si512(packed + 2 * j, _mm512_permutex2var_epi16(even, lower, odd));
      _mm512_storeu_si512(packed + 2 * j + 32, _mm512_permutex2var_epi16(even, upper, odd));
    }
    for (; j < columns; j += 16) {
      const __mmask16 in = first16(n - j), next = whole ? in : __mmask16(0);
      // An empty mask reads nothing, but its address must still lie inside the matrix.
      const __m256i even = _mm256_maskz_loadu_epi16(in, in ? b + j : b);
      const __m256i odd = _mm256_maskz_loadu_epi16(next, next ? b + stride + j : b);
      _mm512_mask_storeu_epi32(packed + 2 * j, first16(columns - j), interleave(even, odd));
    }
  }
}

// Transposes eight rows of 8 pairs into eight rows of 8 columns.
inline void transpose8(__m256i (&r)[8]) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
      u[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
  }
}

void pack_columns(const Half* b, std::int64_t stride, std::int64_t K, std::int64_t n,
                  std::int64_t columns, Half* packed) {
  for (std::int64_t j = 0; j < columns; j += 8)
    for (std::int64_t k = 0; k < K; k += 16) {
      const __mmask16 in = first16(K - k);
      __m256i block[8];
#pragma GCC unroll 8
      for (int l = 0; l < 8; ++l)
        block[l] = j + l < n ? _mm256_maskz_loadu_epi16(in, b + (j + l) * stride + k)
                             : _mm256_setzero_si256();
      transpose8(block);
      const std::int64_t pairs = min(8, (K - k + 1) / 2);
      Half* to = packed + k * columns + 2 * j;
#pragma GCC unroll 8
      for (int l = 0; l < 8; ++l)
        if (l < pairs)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * l * columns), block[l]);
    }
}

// ---- softmax ----------------------------------------------------------------------------------

// A mask of the keys in columns [j, j + 16) that query i of a block sees.
inline __mmask16 visible(const ScoreBlock& block, std::int64_t i, std::int64_t j) {
  const std::int64_t hi = block.hi + i - j, lo = hi - block.window;
  const __mmask16 below = first16(hi);
  return block.window > 0 ? static_cast<__mmask16>(below & ~first16(lo)) : below;
}

inline __m256i narrowed(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

void softmax(const ScoreBlock& block, const float* s, Half* p, float* max, float* sum, float* out,
             std::int64_t width) {
  constexpr int kColumns = ScoreBlock::kColumns, kVectors = kColumns / 16;
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  for (std::int64_t i = 0; i < block.rows; ++i, s += kColumns, p += kColumns, out += width) {
    __m512 x[kVectors], top = none, total = _mm512_setzero_ps();
    __mmask16 in[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      in[v] = visible(block, i, 16 * v);
      x[v] = _mm512_mask_mov_ps(none, in[v], _mm512_loadu_ps(s + 16 * v) * block.scale);
      top = _mm512_max_ps(top, x[v]);
    }
    const float seen = _mm512_reduce_max_ps(top), before = max[i];
    const float largest = seen > before ? seen : before;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 e = _mm512_maskz_mov_ps(in[v], exp16(x[v] - largest));
      total += e;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16 * v), narrowed(e));
    }
    max[i] = largest;
    if (largest != before) {
      const float correction = _mm512_cvtss_f32(exp16(_mm512_set1_ps(before - largest)));
      sum[i] *= correction;
      for (std::int64_t d = 0; d < width; d += 16)
        _mm512_storeu_ps(out + d, _mm512_loadu_ps(out + d) * correction);
    }
    sum[i] += _mm512_reduce_add_ps(total);
  }
}

void softmax_backward(const ScoreBlock& block, const float* s, const float* dp, const float* lse,
                      const float* delta, Half* ds, Half* p_pairs, Half* ds_pairs) {
  constexpr std::int64_t columns = ScoreBlock::kColumns;
  for (std::int64_t i = 0; i < block.rows; i += 2)
    for (std::int64_t j = 0; j < columns; j += 16) {
      __m256i p2[2] = {}, ds2[2] = {};
#pragma GCC unroll 2
      for (int l = 0; l < 2; ++l) {
        if (i + l == block.rows) break;
        const std::int64_t at = (i + l) * columns + j;
        const __mmask16 in = visible(block, i + l, j);
        const __m512 x = _mm512_maskz_loadu_ps(in, s + at) * block.scale - lse[i + l];
        const __m512 e = _mm512_maskz_mov_ps(in, exp16(x));
        p2[l] = narrowed(e);
        ds2[l] = narrowed(
            _mm512_maskz_mov_ps(in, e * (_mm512_maskz_loadu_ps(in, dp + at) - delta[i + l])));
        if (ds) _mm256_storeu_si256(reinterpret_cast<__m256i*>(ds + at), ds2[l]);
      }
      if (!p_pairs) continue;
      _mm512_storeu_si512(p_pairs + i * columns + 2 * j, interleave(p2[0], p2[1]));
      _mm512_storeu_si512(ds_pairs + i * columns + 2 * j, interleave(ds2[0], ds2[1]));
    }
}

}  // namespace

extern const Bf16Tile bf16_tile;
const Bf16Tile bf16_tile = {
    multiply<float>, multiply<Half>, pack_rows, pack_columns, softmax, softmax_backward,
};

}  // namespace lk::cpu::isa_bf16
