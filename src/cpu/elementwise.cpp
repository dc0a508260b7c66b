// Elementwise ops on matrices with a row stride.
#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/simd.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

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

// ---- fast path: a piece of a row --------------------------------------------------------------

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

// draws[4 * i + l] is word l of place first + i; of a mask, or of uniform numbers.
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
    const float kept = draws[j] >= threshold ? widen(x[j]) * keep_scale : 0.0f;
    y[j] = narrow<T>(add ? widen(y[j]) + kept : kept);
  }
}

// Columns [begin, end) of row i; at most kPiece of them.
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
  if (y.dtype() == x.dtype()) {  // bytes, whatever the dtype
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
