// GELU by tanh: y = gelu(x), as GPT-2's "gelu_new". The formula is in activation.h.
#include "cpu/activation.h"
#include "cpu/cpu_backend_impl.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T>
void gelu_forward_plain(Matrix<T> y, Matrix<T> x) {
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) {
      const accumulate_t<T> v = load(x[i][j]);
      y[i][j] = rounded<T>(v * sigmoid_of<GeluTanh>(v));
    }
}

template <class T>
void gelu_backward_plain(Matrix<T> dx, GradMode mode, Matrix<T> dy, Matrix<T> x) {
  for (std::int64_t i = 0; i < dx.rows; ++i)
    for (std::int64_t j = 0; j < dx.cols; ++j) {
      const accumulate_t<T> v = load(x[i][j]);
      put(dx[i][j], mode, load(dy[i][j]) * slope<GeluTanh>(v, sigmoid_of<GeluTanh>(v)));
    }
}

// ---- fast path: a piece of a row --------------------------------------------------------------

template <class T>
LK_SIMD void gelu_forward_row(T* y, const T* x, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    const float v = widen(x[j]);
    y[j] = narrow<T>(v * fast_sigmoid_of<GeluTanh>(v));
  }
}

template <class T>
LK_SIMD void gelu_backward_row(T* dx, bool add, const T* dy, const T* x, std::int64_t n) {
  if (add) {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const float v = widen(x[j]);
      dx[j] =
          narrow<T>(widen(dx[j]) + widen(dy[j]) * slope<GeluTanh>(v, fast_sigmoid_of<GeluTanh>(v)));
    }
  } else {
#pragma omp simd
    for (std::int64_t j = 0; j < n; ++j) {
      const float v = widen(x[j]);
      dx[j] = narrow<T>(widen(dy[j]) * slope<GeluTanh>(v, fast_sigmoid_of<GeluTanh>(v)));
    }
  }
}

}  // namespace

void CpuBackend::gelu_forward(const Tensor& y, const Tensor& x) {
  dispatch_float(y.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 gelu_forward_row(to[i] + j, from[i] + j, end - j);
                               });
      }
    gelu_forward_plain(matrix<T>(y), matrix<T>(x));
  });
}

void CpuBackend::gelu_backward(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor& x) {
  if (mode == GradMode::Skip) return;
  dispatch_float(dx.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> to = matrix<T>(dx), upper = matrix<T>(dy), from = matrix<T>(x);
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 gelu_backward_row(to[i] + j, mode == GradMode::Add, upper[i] + j,
                                                   from[i] + j, end - j);
                               });
      }
    gelu_backward_plain(matrix<T>(dx), mode, matrix<T>(dy), matrix<T>(x));
  });
}

}  // namespace lk
