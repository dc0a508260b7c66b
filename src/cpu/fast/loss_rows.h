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

// x = scale * exp(x - lse) - off
template <class T>
LK_SIMD void softmax_row(T* x, std::int64_t n, float lse, float scale, float off) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) x[j] = narrow<T>(scale * fast_exp(widen(x[j]) - lse) - off);
}

// sum_exp() and softmax_row() with the processor's BF16 instructions where it has them.
template <class T>
float best_sum_exp(const T* x, std::int64_t n, float shift) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Rows* native = best_bf16_rows()) return native->sum_exp(bits(x), n, shift);
  return sum_exp(x, n, shift);
}
template <class T>
void best_softmax_row(T* x, std::int64_t n, float lse, float scale, float off) {
  if constexpr (std::is_same_v<T, bf16>)
    if (const Bf16Rows* native = best_bf16_rows())
      return native->softmax(bits(x), n, lse, scale, off);
  softmax_row(x, n, lse, scale, off);
}

template <class T>
LK_SIMD double sum_piece(const T* x, std::int64_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) total += static_cast<double>(widen(x[j]));
  return total;
}

template <class T>
float cross_entropy_row(T* x, std::int64_t V, std::int32_t target, bool gradient, float scale,
                        double smoothing) {
  if (target == kNoTarget) {
    if (gradient) std::fill(x, x + V, T(0));
    return 0;
  }
  const float largest = row_max(x, V);
  double total = 0, sum = 0;
  for (std::int64_t j = 0; j < V; j += kPiece) {
    const std::int64_t n = std::min(kPiece, V - j);
    total += best_sum_exp(x + j, n, largest);
    if (smoothing > 0) sum += sum_piece(x + j, n);  // the piece is still in the L1 cache
  }
  const float lse = largest + static_cast<float>(std::log(total)), at_target = widen(x[target]);
  const auto off = static_cast<float>(smoothing / static_cast<double>(V));
  const float on = static_cast<float>(1 - smoothing) + off;
  if (gradient) {
    best_softmax_row(x, V, lse, scale, scale * off);
    x[target] = narrow<T>(scale * (fast_exp(at_target - lse) - on));
  }
  if (smoothing == 0) return lse - at_target;
  return static_cast<float>(lse - (1 - smoothing) * at_target -
                            smoothing * (sum / static_cast<double>(V)));
}

}  // namespace
}  // namespace lk::cpu
