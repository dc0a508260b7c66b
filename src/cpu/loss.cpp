// Cross-entropy over logits, overwriting them with their gradient; sums.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/loss_rows.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// ---- plain twins: the definitions -------------------------------------------------------------

template <class T>
void cross_entropy_plain(accumulate_t<T>* losses, Matrix<T> logits, const std::int32_t* targets,
                         bool gradient, double scale, double smoothing) {
  using A = accumulate_t<T>;
  const A off = static_cast<A>(smoothing / static_cast<double>(logits.cols));
  const A on = static_cast<A>(1 - smoothing) + off;
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    T* row = logits[i];
    if (targets[i] == kNoTarget) {
      losses[i] = 0;
      if (gradient) std::fill(row, row + logits.cols, T(0));
      continue;
    }
    A largest = load(row[0]);
    for (std::int64_t j = 1; j < logits.cols; ++j) largest = std::max(largest, load(row[j]));
    A total = 0, sum = 0;
    for (std::int64_t j = 0; j < logits.cols; ++j) {
      total += std::exp(load(row[j]) - largest);
      sum += load(row[j]);
    }
    const A lse = largest + std::log(total), at_target = load(row[targets[i]]);
    losses[i] = smoothing == 0 ? lse - at_target : lse - (on - off) * at_target - off * sum;
    if (!gradient) continue;
    for (std::int64_t j = 0; j < logits.cols; ++j) {
      A p = std::exp(load(row[j]) - lse) - (j == targets[i] ? on : off);
      row[j] = rounded<T>(static_cast<A>(scale) * p);
    }
  }
}

}  // namespace

void CpuBackend::cross_entropy(const Tensor& losses, const Tensor& logits, const Tensor& targets,
                               bool gradient, double scale, const Tensor& factor,
                               double smoothing) {
  if (factor.defined())
    scale *= factor.dtype() == DType::F64 ? *factor.data<double>()
                                          : static_cast<double>(*factor.data<float>());
  check(smoothing >= 0 && smoothing < 1, "cross_entropy: smoothing ", smoothing);
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
          out[i] = cross_entropy_row(rows[i], rows.cols, target[i], gradient,
                                     static_cast<float>(scale), smoothing);
        });
      }
    cross_entropy_plain(losses.data<accumulate_t<T>>(), matrix<T>(logits), target, gradient, scale,
                        smoothing);
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
