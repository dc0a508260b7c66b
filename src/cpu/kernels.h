// What every CPU kernel uses: matrix views, loads and stores in the accumulation type.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tensor/backend.h"

namespace lk::cpu {

// A row-major matrix with a row stride, as loops use it.
template <class T>
struct Matrix {
  T* data;
  std::int64_t rows, cols, ld;
  T* operator[](std::int64_t i) const { return data + i * ld; }
};

template <class T>
Matrix<T> matrix(const Tensor& t) {
  return {t.data<T>(), t.rows(), t.cols(), t.ld()};
}
template <class T>
Matrix<const T> matrix(const Weight& w) {
  return {w.values().data<T>(), w.values().rows(), w.values().cols(), w.values().ld()};
}

// Converts a stored number to its accumulation type (bf16 -> float), and back with one rounding.
template <class T>
inline accumulate_t<T> load(T x) {
  return static_cast<accumulate_t<T>>(x);
}
template <class T, class A>
inline T rounded(A x) {
  if constexpr (std::is_same_v<T, bf16>)
    return bf16(static_cast<float>(x));
  else
    return static_cast<T>(x);
}
// Stores y = value or y += value.
template <class T, class A>
inline void put(T& y, GradMode mode, A value) {
  y = rounded<T>(mode == GradMode::Add ? static_cast<A>(load(y)) + value : value);
}

// The bits of bf16 numbers, as kernels of a single instruction set take them.
inline std::uint16_t* bits(bf16* p) { return reinterpret_cast<std::uint16_t*>(p); }
inline const std::uint16_t* bits(const bf16* p) {
  return reinterpret_cast<const std::uint16_t*>(p);
}

// Work smaller than this (elements) is not worth a second thread.
inline constexpr std::int64_t kSerialElements = std::int64_t{1} << 14;
// Long rows are cut into pieces of this many elements. Partial sums are one per piece and are added
// in order, so that no result depends on the number of threads.
inline constexpr std::int64_t kPiece = std::int64_t{1} << 13;

// Runs f(i) for each i in [0, n) in parallel; `work`: the number of elements that all of them touch.
template <class F>
void parallel_for(std::int64_t n, std::int64_t work, const F& f) {
#pragma omp parallel for schedule(static) if (work > kSerialElements)
  for (std::int64_t i = 0; i < n; ++i) f(i);
}

// Runs f(row, begin, end) for all rows of a matrix in parallel, in pieces of kPiece columns at most.
template <class F>
void parallel_pieces(std::int64_t rows, std::int64_t cols, const F& f) {
  const std::int64_t per_row = (cols + kPiece - 1) / kPiece;
  parallel_for(rows * per_row, rows * cols, [&](std::int64_t unit) {
    const std::int64_t begin = unit % per_row * kPiece;
    f(unit / per_row, begin, begin + kPiece < cols ? begin + kPiece : cols);
  });
}

inline void check_rows(const std::int32_t* index, std::int64_t n, std::int64_t rows) {
  for (std::int64_t i = 0; i < n; ++i)
    require(index[i] >= 0 && index[i] < rows, "index ", index[i], " is not in 0 .. ", rows - 1);
}

// Whether a dtype has a fast path.
template <class T>
inline constexpr bool has_fast_path = !std::is_same_v<T, double>;

}  // namespace lk::cpu
