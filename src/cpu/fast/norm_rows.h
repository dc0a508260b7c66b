// Rows of norms, vectorised. Included by cpu/norm.cpp alone, whose definitions they must agree
// with.
#pragma once

#include <cmath>

#include "cpu/fast/simd.h"

namespace lk::cpu {
namespace {

template <class T>
LK_SIMD float rmsnorm_forward_row(T* y, const T* x, const T* gain, std::int64_t C, float eps) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < C; ++j) squares += widen(x[j]) * widen(x[j]);
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(C) + eps);
#pragma omp simd
  for (std::int64_t j = 0; j < C; ++j) y[j] = narrow<T>(widen(x[j]) * rstd * widen(gain[j]));
  return rstd;
}

template <class T>
LK_SIMD void rmsnorm_backward_row(T* dx, bool add, const T* dy, const T* x, const T* gain,
                                  float rstd, std::int64_t C) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t j = 0; j < C; ++j) dot += widen(dy[j]) * widen(gain[j]) * widen(x[j]);
  const float mean = dot * rstd / static_cast<float>(C);
  if (add) {
#pragma omp simd
    for (std::int64_t j = 0; j < C; ++j)
      dx[j] = narrow<T>(widen(dx[j]) +
                        rstd * (widen(dy[j]) * widen(gain[j]) - widen(x[j]) * rstd * mean));
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < C; ++j)
      dx[j] = narrow<T>(rstd * (widen(dy[j]) * widen(gain[j]) - widen(x[j]) * rstd * mean));
  }
}

// The statistics take two sweeps: sum(x^2) - C mean^2 would cancel where the mean is large.
template <class T>
LK_SIMD void layernorm_forward_row(T* y, float* mean, float* rstd, const T* x, const T* gain,
                                   const T* bias, std::int64_t C, float eps) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < C; ++j) sum += widen(x[j]);
  const float m = sum / static_cast<float>(C);
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < C; ++j) squares += (widen(x[j]) - m) * (widen(x[j]) - m);
  const float r = 1.0f / std::sqrt(squares / static_cast<float>(C) + eps);
#pragma omp simd
  for (std::int64_t j = 0; j < C; ++j)
    y[j] = narrow<T>((widen(x[j]) - m) * r * widen(gain[j]) + widen(bias[j]));
  *mean = m, *rstd = r;
}

template <class T>
LK_SIMD void layernorm_backward_row(T* dx, bool add, const T* dy, const T* x, const T* gain,
                                    float mean, float rstd, std::int64_t C) {
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (std::int64_t j = 0; j < C; ++j) {
    const float g = widen(dy[j]) * widen(gain[j]);
    sum += g;
    dot += g * (widen(x[j]) - mean);
  }
  const float mean_g = sum / static_cast<float>(C), mean_dot = dot * rstd / static_cast<float>(C);
  if (add) {
#pragma omp simd
    for (std::int64_t j = 0; j < C; ++j)
      dx[j] = narrow<T>(widen(dx[j]) + rstd * (widen(dy[j]) * widen(gain[j]) - mean_g -
                                               (widen(x[j]) - mean) * rstd * mean_dot));
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < C; ++j)
      dx[j] = narrow<T>(
          rstd * (widen(dy[j]) * widen(gain[j]) - mean_g - (widen(x[j]) - mean) * rstd * mean_dot));
  }
}

}  // namespace
}  // namespace lk::cpu
