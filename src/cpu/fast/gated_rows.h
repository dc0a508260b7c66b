// Pieces of rows for gated units, vectorised; processors that multiply BF16 use instructions of
// their own. Included by cpu/gated.cpp alone, whose definitions they must agree with.
#pragma once

#include <type_traits>

#include "cpu/activation.h"
#include "cpu/fast/bf16_rows.h"

namespace lk::cpu {
namespace {

template <class Act, class T>
LK_SIMD void glu_forward_row(T* y, const T* gate, const T* up, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float g = widen(gate[j]);
    y[j] = narrow<T>(g / (1.0f + fast_exp(-Act::z(g))) * widen(up[j]));
  }
}

template <class Act, bool MAKE_Y, class T>
LK_SIMD void glu_backward_loop(T* y, T* dgate, T* dup, const T* dy, const T* gate, const T* up,
                               std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float g = widen(gate[j]), u = widen(up[j]), d = widen(dy[j]);
    const float s = fast_sigmoid_of<Act>(g);
    dgate[j] = narrow<T>(d * u * slope<Act>(g, s));
    dup[j] = narrow<T>(d * g * s);
    if constexpr (MAKE_Y) y[j] = narrow<T>(g * s * u);
  }
}

// y, unless it is null, is made again. Asked inside the loop this would keep AVX2, which has no masked store of
// BF16, from vectorising it.
template <class Act, class T>
void glu_backward_row(T* y, T* dgate, T* dup, const T* dy, const T* gate, const T* up,
                      std::int64_t n) {
  y ? glu_backward_loop<Act, true>(y, dgate, dup, dy, gate, up, n)
    : glu_backward_loop<Act, false>(y, dgate, dup, dy, gate, up, n);
}

template <class Act, class T>
LK_SIMD void act_forward_row(T* y, const T* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float v = widen(x[j]);
    y[j] = narrow<T>(v * fast_sigmoid_of<Act>(v));
  }
}

template <class Act, class T>
LK_SIMD void act_backward_row(T* dx, bool add, const T* dy, const T* x, std::int64_t n) {
  if (add) {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const float v = widen(x[j]);
      dx[j] = narrow<T>(widen(dx[j]) + widen(dy[j]) * slope<Act>(v, fast_sigmoid_of<Act>(v)));
    }
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const float v = widen(x[j]);
      dx[j] = narrow<T>(widen(dy[j]) * slope<Act>(v, fast_sigmoid_of<Act>(v)));
    }
  }
}

// The row kernels of a processor that multiplies BF16; they exist for silu only.
template <class Act>
const Bf16Rows* native_rows() {
  return std::is_same_v<Act, Silu> ? best_bf16_rows() : nullptr;
}

}  // namespace
}  // namespace lk::cpu
