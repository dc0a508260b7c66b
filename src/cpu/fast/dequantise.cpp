// Dense matrices of quantised ones: rows in parallel, each through one buffer of F32.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/bf16_rows.h"
#include "cpu/fast/few_rows.h"
#include "cpu/kernels.h"
#include "cpu/thread_scratch.h"

namespace lk {

using namespace cpu;

namespace {

// to = rows [first, first + rows of `to`) of q
void dequantise_part(const HostQuantised& q, std::int64_t first, const Tensor& to) {
  static const Bf16Rows* const native = best_bf16_rows();
  dispatch_float(to.dtype(), [&]<class T>() {
    const Matrix<T> rows = matrix<T>(to);
    ThreadScratch scratch(to.cols());
    parallel_for(to.rows(), to.numel(), [&](std::int64_t n) {
      if constexpr (std::is_same_v<T, float>) {
        dequantise_rows(q, first + n, first + n + 1, rows[n]);
      } else {
        float* row = scratch.mine();
        dequantise_rows(q, first + n, first + n + 1, row);
        if constexpr (std::is_same_v<T, bf16>)
          if (native) return native->round(bits(rows[n]), row, rows.cols);
        for (std::int64_t k = 0; k < rows.cols; ++k) rows[n][k] = rounded<T>(row[k]);
      }
    });
  });
}

}  // namespace

void CpuBackend::dequantise(const Tensor& to, const Weight& w) {
  check(w.has_values(), w.name(), ": is packed for inference");
  check(to.shape() == w.shape(), "dequantise: ", to.shape(), " for ", w.shape());
  dequantise_part(host_view(*w.quantised(), w.shape()), 0, to);
}

// A few tokens read each weight once, so parts of it are dequantised that stay in the cache. A sum
// over K does not depend on the part: these are the bits that a dense weight gives.
void CpuBackend::few_rows_of(const Tensor& y, const Tensor& x, const Weight& w) {
  const std::int64_t N = w.shape()[0];
  const HostQuantised q = host_view(*w.quantised(), w.shape());
  const Tensor part = empty(Tag::Workspace, x.dtype(), few_rows_part(w.shape()));
  const std::int64_t step = part.rows();
  for (std::int64_t first = 0; first < N; first += step) {
    const Tensor rows = part.slice_rows(0, std::min(step, N - first));
    dequantise_part(q, first, rows);
    const Tensor to = y.slice_cols(first, first + rows.rows());
    if (use_onednn(x.dtype()))
      linear_few_rows(to, x, rows);
    else
      matmul_nt(to, GradMode::Write, 1.0, x, rows, {});
  }
}

}  // namespace lk
