// Rows of cross-entropy, vectorised; processors that multiply BF16 use instructions of their own.
// Included by cpu/loss.cpp alone, whose definitions they must agree with.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/fast/bf16_rows.h"
#include "cpu/fast/simd.h"
#include "cpu/kernels.h"

namespace lk::cpu {
namespace {

template <class T>
LK_SIMD float row_max(const T* x, std::int64_t n) {
  float largest = widen(x[0]);
#pragma omp simd reduction(max : largest)
  for (std::int64_t j = 0; j < n; ++j) largest = widen(x[j]) > largest ? widen(x[j]) : largest;
  return largest;
}

template <class T>
LK_SIMD float sum_exp(const T* x, std::int64_t n, float shift) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) total += fast_exp(widen(x[j]) - shift);
  return total;
}

// x = scale * exp(x - lse)
template <class T>
LK_SIMD void softmax_row(T* x, std::int64_t n, float lse, float scale) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) x[j] = narrow<T>(scale * fast_exp(widen(x[j]) - lse));
}

// sum_exp() and softmax_row() with the processor's BF16 instructions where it has them.
template <class T>
float best_sum_exp(const T* x, std::int64_t n, float shift) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Rows* native = best_bf16_rows()) return native->sum_exp(bits(x), n, shift);
  return sum_exp(x, n, shift);
}
template <class T>
void best_softmax_row(T* x, std::int64_t n, float lse, float scale) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Rows* native = best_bf16_rows()) return native->softmax(bits(x), n, lse, scale);
  softmax_row(x, n, lse, scale);
}

template <class T>
float cross_entropy_row(T* x, std::int64_t V, std::int32_t target, bool gradient, float scale) {
  if (target == kNoTarget) {
    if (gradient) std::fill(x, x + V, T(0));
    return 0;
  }
  const float largest = row_max(x, V);
  double total = 0;
  for (std::int64_t j = 0; j < V; j += kPiece)
    total += best_sum_exp(x + j, std::min(kPiece, V - j), largest);
  const float lse = largest + static_cast<float>(std::log(total)), at_target = widen(x[target]);
  if (gradient) {
    best_softmax_row(x, V, lse, scale);
    x[target] = narrow<T>(scale * (fast_exp(at_target - lse) - 1.0f));
  }
  return lse - at_target;
}

template <class T>
LK_SIMD double sum_piece(const T* x, std::int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) total += static_cast<double>(x[j]);
  return total;
}

}  // namespace
}  // namespace lk::cpu
