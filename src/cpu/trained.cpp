// Vectors and tables that train: scaling by a vector, and sums over tokens for their gradients.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

constexpr std::int64_t kStrip = 64;  // columns that a thread sums at a time

// Calls f(begin, end) for strips of the columns [0, cols), in parallel.
template <class F>
void parallel_strips(std::int64_t cols, std::int64_t work, const F& f) {
  parallel_for((cols + kStrip - 1) / kStrip, work, [&](std::int64_t strip) {
    f(strip * kStrip, std::min(cols, (strip + 1) * kStrip));
  });
}

// out_j (+)= sum over t of a_tj (b_tj - mean_t) rstd_t for the columns [begin, end); b.data, mean
// and rstd may be null. Every 64 rows are summed on their own and these sums then added in order,
// so the error grows with 64 + T / 64 rather than with T.
template <class T>
void column_sums_strip(accumulate_t<T>* out, GradMode mode, Matrix<T> a, Matrix<T> b,
                       const accumulate_t<T>* mean, const accumulate_t<T>* rstd, std::int64_t begin,
                       std::int64_t end) {
  using A = accumulate_t<T>;
  constexpr std::int64_t kRows = 64;
  A total[kStrip] = {};
  for (std::int64_t first = 0; first < a.rows; first += kRows) {
    A part[kStrip] = {};
    for (std::int64_t t = first; t < std::min(a.rows, first + kRows); ++t) {
      const A m = mean ? mean[t] : A(0), r = rstd ? rstd[t] : A(1);
      for (std::int64_t j = begin; j < end; ++j)
        part[j - begin] += b.data ? load(a[t][j]) * ((load(b[t][j]) - m) * r) : load(a[t][j]) * r;
    }
    for (std::int64_t j = 0; j < end - begin; ++j) total[j] += part[j];
  }
  for (std::int64_t j = begin; j < end; ++j) put(out[j], mode, total[j - begin]);
}

}  // namespace

void CpuBackend::scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& l) {
  dispatch_float(y.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
    const T* factor = l.data<T>();
    parallel_pieces(to.rows, to.cols, [&](std::int64_t i, std::int64_t begin, std::int64_t end) {
      for (std::int64_t j = begin; j < end; ++j)
        put(to[i][j], mode, load(from[i][j]) * load(factor[j]));
    });
  });
}

void CpuBackend::column_sums(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                             const Tensor& mean, const Tensor& rstd) {
  dispatch_float(a.dtype(), [&]<class T>() {
    using A = accumulate_t<T>;
    const Matrix<T> first = matrix<T>(a), second = b ? matrix<T>(b) : Matrix<T>{};
    const A *m = mean ? mean.data<A>() : nullptr, *r = rstd ? rstd.data<A>() : nullptr;
    A* out = dl.data<A>();
    parallel_strips(first.cols, a.numel(), [&](std::int64_t begin, std::int64_t end) {
      column_sums_strip<T>(out, mode, first, second, m, r, begin, end);
    });
  });
}

// Each thread has its own columns and takes the tokens in order, so no id needs to be unique.
void CpuBackend::sum_rows_by_id(const Tensor& dtable, GradMode mode, const Tensor& dy,
                                const Tensor& ids) {
  if (mode == GradMode::Write) fill(dtable, 0.0);
  const std::int32_t* id = ids.data<std::int32_t>();
  for (std::int64_t i = 0; i < dy.rows(); ++i)
    check(id[i] >= 0 && id[i] < dtable.rows(), "table_gradient: id ", id[i], " at ", i,
          " is outside [0, ", dtable.rows(), ")");
  dispatch_float(dy.dtype(), [&]<class T>() {
    Matrix<accumulate_t<T>> to = matrix<accumulate_t<T>>(dtable);
    Matrix<T> from = matrix<T>(dy);
    parallel_strips(from.cols, dy.numel(), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = 0; i < from.rows; ++i)
        for (std::int64_t j = begin; j < end; ++j) to[id[i]][j] += load(from[i][j]);
    });
  });
}

}  // namespace lk
