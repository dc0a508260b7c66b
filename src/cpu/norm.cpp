// RMSNorm (Zhang & Sennrich 2019): y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps).
// LayerNorm (Ba, Kiros & Hinton 2016): y = (x - mean) * rstd * gain + bias, with the variance.
#include <cmath>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/norm_rows.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T>
void rmsnorm_forward_plain(Matrix<T> y, accumulate_t<T>* rstd, Matrix<T> x, const T* gain,
                           double eps) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    A squares = 0;
    for (std::int64_t j = 0; j < x.cols; ++j) squares += load(x[i][j]) * load(x[i][j]);
    A r = A(1) / std::sqrt(squares / static_cast<A>(x.cols) + static_cast<A>(eps));
    rstd[i] = r;
    for (std::int64_t j = 0; j < x.cols; ++j)
      y[i][j] = rounded<T>(load(x[i][j]) * r * load(gain[j]));
  }
}

template <class T>
void rmsnorm_backward_plain(Matrix<T> dx, GradMode mode, Matrix<T> dy, Matrix<T> x, const T* gain,
                            const accumulate_t<T>* rstd) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const A r = rstd[i];
    A dot = 0;
    for (std::int64_t j = 0; j < x.cols; ++j)
      dot += load(dy[i][j]) * load(gain[j]) * (load(x[i][j]) * r);
    const A mean = dot / static_cast<A>(x.cols);
    for (std::int64_t j = 0; j < x.cols; ++j) {
      A g = load(dy[i][j]) * load(gain[j]), xhat = load(x[i][j]) * r;
      put(dx[i][j], mode, r * (g - xhat * mean));
    }
  }
}

template <class T>
void layernorm_forward_plain(Matrix<T> y, accumulate_t<T>* mean, accumulate_t<T>* rstd, Matrix<T> x,
                             const T* gain, const T* bias, double eps) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    A sum = 0, squares = 0;
    for (std::int64_t j = 0; j < x.cols; ++j) sum += load(x[i][j]);
    const A m = sum / static_cast<A>(x.cols);
    for (std::int64_t j = 0; j < x.cols; ++j) squares += (load(x[i][j]) - m) * (load(x[i][j]) - m);
    const A r = A(1) / std::sqrt(squares / static_cast<A>(x.cols) + static_cast<A>(eps));
    mean[i] = m, rstd[i] = r;
    for (std::int64_t j = 0; j < x.cols; ++j)
      y[i][j] = rounded<T>((load(x[i][j]) - m) * r * load(gain[j]) + load(bias[j]));
  }
}

template <class T>
void layernorm_backward_plain(Matrix<T> dx, GradMode mode, Matrix<T> dy, Matrix<T> x, const T* gain,
                              const accumulate_t<T>* mean, const accumulate_t<T>* rstd) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const A m = mean[i], r = rstd[i];
    A sum = 0, dot = 0;
    for (std::int64_t j = 0; j < x.cols; ++j) {
      const A g = load(dy[i][j]) * load(gain[j]);
      sum += g;
      dot += g * ((load(x[i][j]) - m) * r);
    }
    const A mean_g = sum / static_cast<A>(x.cols), mean_dot = dot / static_cast<A>(x.cols);
    for (std::int64_t j = 0; j < x.cols; ++j) {
      const A g = load(dy[i][j]) * load(gain[j]), xhat = (load(x[i][j]) - m) * r;
      put(dx[i][j], mode, r * (g - mean_g - xhat * mean_dot));
    }
  }
}

}  // namespace

void CpuBackend::rmsnorm_forward(const Tensor& y, const Tensor& rstd, const Tensor& x,
                                 const Weight& gain, double eps) {
  dispatch_float(x.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
        float* r = rstd.data<float>();
        const T* g = gain.values().data<T>();
        return parallel_for(from.rows, x.numel(), [&](std::int64_t i) {
          r[i] = rmsnorm_forward_row(to[i], from[i], g, from.cols, static_cast<float>(eps));
        });
      }
    rmsnorm_forward_plain(matrix<T>(y), rstd.data<accumulate_t<T>>(), matrix<T>(x),
                          gain.values().data<T>(), eps);
  });
}

void CpuBackend::rmsnorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                  const Tensor& x, const Weight& gain, const Tensor& rstd) {
  dispatch_float(x.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> to = matrix<T>(dx), upper = matrix<T>(dy), from = matrix<T>(x);
        const float* r = rstd.data<float>();
        const T* g = gain.values().data<T>();
        return parallel_for(from.rows, x.numel(), [&](std::int64_t i) {
          rmsnorm_backward_row(to[i], mode == GradMode::Add, upper[i], from[i], g, r[i], from.cols);
        });
      }
    rmsnorm_backward_plain(matrix<T>(dx), mode, matrix<T>(dy), matrix<T>(x),
                           gain.values().data<T>(), rstd.data<accumulate_t<T>>());
  });
}

void CpuBackend::layernorm_forward(const Tensor& y, const Tensor& mean, const Tensor& rstd,
                                   const Tensor& x, const Weight& gain, const Weight& bias,
                                   double eps) {
  dispatch_float(x.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    const T *g = gain.values().data<T>(), *b = bias.values().data<T>();
    A *m = mean.data<A>(), *r = rstd.data<A>();
    Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_for(from.rows, x.numel(), [&](std::int64_t i) {
          layernorm_forward_row(to[i], m + i, r + i, from[i], g, b, from.cols,
                                static_cast<float>(eps));
        });
    layernorm_forward_plain(to, m, r, from, g, b, eps);
  });
}

void CpuBackend::layernorm_backward(const Tensor& dx, GradMode mode, const Tensor& dy,
                                    const Tensor& x, const Weight& gain, const Tensor& mean,
                                    const Tensor& rstd) {
  dispatch_float(x.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    const T* g = gain.values().data<T>();
    const A *m = mean.data<A>(), *r = rstd.data<A>();
    Matrix<T> to = matrix<T>(dx), upper = matrix<T>(dy), from = matrix<T>(x);
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_for(from.rows, x.numel(), [&](std::int64_t i) {
          layernorm_backward_row(to[i], mode == GradMode::Add, upper[i], from[i], g, m[i], r[i],
                                 from.cols);
        });
    layernorm_backward_plain(to, mode, upper, from, g, m, r);
  });
}

}  // namespace lk
