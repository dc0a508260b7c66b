// Cross-entropy over logits, overwriting them with their gradient; sums.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/bf16_rows.h"
#include "cpu/fast/simd.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T>
void cross_entropy_plain(accumulate_t<T>* losses, Matrix<T> logits, const std::int32_t* targets,
                         bool gradient, double scale) {
  using A = accumulate_t<T>;
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    T* row = logits[i];
    if (targets[i] == kNoTarget) {
      losses[i] = 0;
      if (gradient) std::fill(row, row + logits.cols, T(0));
      continue;
    }
    A largest = load(row[0]);
    for (std::int64_t j = 1; j < logits.cols; ++j) largest = std::max(largest, load(row[j]));
    A total = 0;
    for (std::int64_t j = 0; j < logits.cols; ++j) total += std::exp(load(row[j]) - largest);
    const A lse = largest + std::log(total);
    losses[i] = lse - load(row[targets[i]]);
    if (!gradient) continue;
    for (std::int64_t j = 0; j < logits.cols; ++j) {
      A p = std::exp(load(row[j]) - lse) - (j == targets[i] ? A(1) : A(0));
      row[j] = rounded<T>(static_cast<A>(scale) * p);
    }
  }
}

// ---- fast path: one row -----------------------------------------------------------------------

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

// The same on processors that have a faster way.
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

void CpuBackend::cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                               bool gradient, double scale, const Tensor& factor) {
  if (factor.defined())
    scale *= factor.dtype() == DType::F64 ? *factor.data<double>()
                                          : static_cast<double>(*factor.data<float>());
  const std::int32_t* target = targets.data<std::int32_t>();
  for (std::int64_t i = 0; i < logits.rows(); ++i)
    check(target[i] == kNoTarget || (target[i] >= 0 && target[i] < logits.cols()),
          "cross_entropy: target ", target[i], " at ", i, " is outside [0, ", logits.cols(), ")");
  dispatch_float(logits.dtype(), [&]<class T>() {
    if constexpr (has_fast_path<T>)
      if (fast()) {
        Matrix<T> rows = matrix<T>(logits);
        float* out = losses.data<float>();
        return parallel_for(rows.rows, logits.numel(), [&](std::int64_t i) {
          out[i] =
              cross_entropy_row(rows[i], rows.cols, target[i], gradient, static_cast<float>(scale));
        });
      }
    cross_entropy_plain(losses.data<accumulate_t<T>>(), matrix<T>(logits), target, gradient, scale);
  });
}

void CpuBackend::sum(const Tensor& out, GradMode mode, double alpha, const Tensor& x) {
  check(x.dtype() != DType::BF16, "sum: F32 or F64");
  dispatch_float(x.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    Matrix<A> m = matrix<A>(x);
    double total = 0;
    for (std::int64_t i = 0; i < m.rows; ++i)
      for (std::int64_t j = 0; j < m.cols; j += kPiece)
        total += sum_piece(m[i] + j, std::min(kPiece, m.cols - j));
    dispatch_float(out.dtype(), [&]<class O>() { put(*out.data<O>(), mode, alpha * total); });
  });
}

}  // namespace lk
