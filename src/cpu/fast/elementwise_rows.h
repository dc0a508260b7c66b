// Pieces of rows for elementwise ops, vectorised. Included by cpu/elementwise.cpp alone, whose
// definitions they must agree with.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/fast/simd.h"
#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

template <class T, class S>
LK_SIMD void copy_row(T* y, const S* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) y[j] = narrow<T>(widen(x[j]));
}

template <class T>
LK_SIMD void add_row(T* y, const T* a, const T* b, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) y[j] = narrow<T>(widen(a[j]) + widen(b[j]));
}

template <class T>
LK_SIMD void scale_row(T* y, bool add, float factor, const T* x, std::int64_t n) {
  if (add) {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) y[j] = narrow<T>(widen(y[j]) + factor * widen(x[j]));
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) y[j] = narrow<T>(factor * widen(x[j]));
  }
}

// draws[4 * i + l] is word l of place first + i: of a dropout mask if MASK, else of uniform
// numbers.
template <bool MASK>
LK_SIMD void philox_words(std::uint32_t* draws, const RandomKey& key, std::uint64_t first,
                          std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t place = first + static_cast<std::uint64_t>(i);
    const Philox4 r = MASK ? philox_octet(key, place) : philox_at(key, place);
    draws[4 * i] = r.v[0];
    draws[4 * i + 1] = r.v[1];
    draws[4 * i + 2] = r.v[2];
    draws[4 * i + 3] = r.v[3];
  }
}

template <bool add, class T>
LK_SIMD void dropout_row(T* y, const T* x, const std::uint16_t* draws, std::uint32_t threshold,
                         float keep_scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float scaled = widen(x[j]) * keep_scale;  // read always: AVX2 has no masked load of BF16
    const float kept = draws[j] >= threshold ? scaled : 0.0f;
    y[j] = narrow<T>(add ? widen(y[j]) + kept : kept);
  }
}

// Dropout of columns [begin, end) of row i, at most kPiece of them.
template <class T>
void dropout_piece(Matrix<T> y, GradMode mode, Matrix<T> x, float p, const RandomKey& key,
                   std::int64_t i, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kDraws = 2048;
  static_assert(std::endian::native == std::endian::little, "an even element has the lower half");
  alignas(64) std::uint32_t words[kDraws / 2 + 8];
  alignas(64) std::uint16_t draws[kDraws + 16];
  const float keep_scale = 1.0f / (1.0f - p);
  const std::uint32_t threshold = dropout_threshold(p);
  for (std::int64_t j = begin; j < end; j += kDraws) {
    const std::int64_t n = std::min(kDraws, end - j), element = i * x.cols + j, skip = element % 8;
    philox_words<true>(words, key, static_cast<std::uint64_t>(element / 8), (skip + n + 7) / 8);
    std::memcpy(draws, words, static_cast<std::size_t>(skip + n + 7) / 8 * 16);
    auto row = mode == GradMode::Add ? dropout_row<true, T> : dropout_row<false, T>;
    row(y[i] + j, x[i] + j, draws + skip, threshold, keep_scale, n);
  }
}

}  // namespace
}  // namespace lk::cpu
