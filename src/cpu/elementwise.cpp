// Elementwise ops on matrices with a row stride.
#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/elementwise_rows.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

void check_like(const char* what, const Tensor& y, const Tensor& x) {
  check(x.rows() == y.rows() && x.cols() == y.cols(), what, ": ", x.shape(), " for ", y.shape());
}

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T, class S>
void copy_plain(Matrix<T> y, Matrix<S> x) {
  for (std::int64_t i = 0; i < x.rows; ++i)
    for (std::int64_t j = 0; j < x.cols; ++j) y[i][j] = rounded<T>(load(x[i][j]));
}

template <class T>
void add_plain(Matrix<T> y, Matrix<T> a, Matrix<T> b) {
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) y[i][j] = rounded<T>(load(a[i][j]) + load(b[i][j]));
}

template <class T>
void scale_plain(Matrix<T> y, GradMode mode, accumulate_t<T> factor, Matrix<T> x) {
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) put(y[i][j], mode, factor * load(x[i][j]));
}

template <class T>
void add_bias_plain(Matrix<T> y, const T* bias) {
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) y[i][j] = rounded<T>(load(y[i][j]) + load(bias[j]));
}

template <class T>
void dropout_plain(Matrix<T> y, GradMode mode, Matrix<T> x, float p, const RandomKey& key) {
  using A = accumulate_t<T>;
  const A keep_scale = A(1) / (A(1) - static_cast<A>(p));
  const std::uint32_t threshold = dropout_threshold(p);
  for (std::int64_t i = 0; i < y.rows; ++i)
    for (std::int64_t j = 0; j < y.cols; ++j) {
      const bool keep = dropout_keeps(key, static_cast<std::uint64_t>(i * x.cols + j), threshold);
      put(y[i][j], mode, keep ? load(x[i][j]) * keep_scale : A(0));
    }
}

}  // namespace

void CpuBackend::fill(const Tensor& x, double value) {
  dispatch_float(x.dtype(), [&]<class T>() {
    Matrix<T> m = matrix<T>(x);
    const T v = rounded<T>(value);
    parallel_pieces(m.rows, m.cols, [&](std::int64_t i, std::int64_t j, std::int64_t end) {
      std::fill(m[i] + j, m[i] + end, v);
    });
  });
}

void CpuBackend::uniform(const Tensor& x, float bound, const RandomKey& key) {
  dispatch_float(x.dtype(), [&]<class T>() {
    Matrix<T> m = matrix<T>(x);
    parallel_pieces(m.rows, m.cols, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      constexpr std::int64_t kDraws = 1024;
      alignas(64) std::uint32_t draws[kDraws + 8];
      for (std::int64_t j = begin; j < end; j += kDraws) {
        const std::int64_t n = std::min(kDraws, end - j), element = i * m.cols + j;
        const std::int64_t skip = element % 4;
        philox_words<false>(draws, key, static_cast<std::uint64_t>(element / 4),
                            (skip + n + 3) / 4);
        for (std::int64_t k = 0; k < n; ++k)
          m[i][j + k] = static_cast<T>(bound * (2 * philox_uniform(draws[skip + k]) - 1));
      }
    });
  });
}

void CpuBackend::copy(const Tensor& y, const Tensor& x) {
  check_like("copy: x", y, x);
  if (y.dtype() == x.dtype()) {  // copies bytes, whatever the dtype
    std::size_t size = dtype_size(x.dtype()), row = static_cast<std::size_t>(x.cols()) * size;
    if (row == 0) return;
    parallel_for(x.rows(), x.numel(), [&](std::int64_t i) {
      std::memcpy(
          static_cast<std::byte*>(y.raw()) + static_cast<std::size_t>(i * y.ld()) * size,
          static_cast<const std::byte*>(x.raw()) + static_cast<std::size_t>(i * x.ld()) * size,
          row);
    });
    return;
  }
  dispatch_float(y.dtype(), [&]<class T>() {
    dispatch_float(x.dtype(), [&]<class S>() {
      Matrix<T> to = matrix<T>(y);
      Matrix<S> from = matrix<S>(x);
      if constexpr (has_fast_path<T> && has_fast_path<S>)
        if (fast())
          return parallel_pieces(to.rows, to.cols,
                                 [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                   copy_row(to[i] + j, from[i] + j, end - j);
                                 });
      copy_plain(to, from);
    });
  });
}

void CpuBackend::add(const Tensor& y, const Tensor& a, const Tensor& b) {
  check_like("add: a", y, a);
  check_like("add: b", y, b);
  dispatch_float(y.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(y), first = matrix<T>(a), second = matrix<T>(b);
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 add_row(to[i] + j, first[i] + j, second[i] + j, end - j);
                               });
    add_plain(to, first, second);
  });
}

void CpuBackend::scale(const Tensor& y, GradMode mode, double alpha, const Tensor& scalar,
                       const Tensor& x) {
  check_like("scale: x", y, x);
  dispatch_float(y.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    A factor = static_cast<A>(alpha) * (scalar.defined() ? *scalar.data<A>() : A(1));
    Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_pieces(
            to.rows, to.cols, [&](std::int64_t i, std::int64_t j, std::int64_t end) {
              scale_row(to[i] + j, mode == GradMode::Add, factor, from[i] + j, end - j);
            });
    scale_plain(to, mode, factor, from);
  });
}

void CpuBackend::add_bias(const Tensor& y, const Weight& bias) {
  dispatch_float(y.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(y);
    const T* b = bias.values().data<T>();
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 add_row(to[i] + j, to[i] + j, b + j, end - j);
                               });
    add_bias_plain(to, b);
  });
}

void CpuBackend::dropout(const Tensor& y, GradMode mode, const Tensor& x, float p,
                         const RandomKey& of_step) {
  check(p >= 0 && p < 1, "dropout: p is ", p);
  check_like("dropout: x", y, x);
  const RandomKey key = of_step.resolved();
  dispatch_float(y.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
    if constexpr (has_fast_path<T>)
      if (fast())
        return parallel_pieces(to.rows, to.cols,
                               [&](std::int64_t i, std::int64_t j, std::int64_t end) {
                                 dropout_piece(to, mode, from, p, key, i, j, end);
                               });
    dropout_plain(to, mode, from, p, key);
  });
}

}  // namespace lk
