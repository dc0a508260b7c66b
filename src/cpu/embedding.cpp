// Moving rows: embedding lookup, gather and scatter. The only arithmetic is scatter's addition.
#include <algorithm>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/quantised_linear.h"
#include "cpu/kernels.h"
#include "cpu/thread_scratch.h"

namespace lk {

using namespace cpu;

namespace {

// y (n,C) = x[index]
template <class T>
void gather(Matrix<T> y, Matrix<const T> x, const std::int32_t* index) {
  check_rows(index, y.rows, x.rows);
  parallel_for(y.rows, y.rows * y.cols,
               [&](std::int64_t i) { std::copy_n(x[index[i]], y.cols, y[i]); });
}

// y (n,C) = x[index], x quantised
template <class T>
void gather_quantised(Matrix<T> y, const Weight& x, const std::int32_t* index) {
  check_rows(index, y.rows, x.shape()[0]);
  ThreadScratch scratch(y.cols);
  parallel_for(y.rows, y.rows * y.cols, [&](std::int64_t i) {
    float* row = scratch.mine();
    quantised_row(x, index[i], row);
    for (std::int64_t j = 0; j < y.cols; ++j) y[i][j] = rounded<T>(row[j]);
  });
}

}  // namespace

void CpuBackend::embedding_forward(const Tensor& y, const Weight& table, const Tensor& ids) {
  dispatch_float(y.dtype(), [&]<class T>() {
    if (table.quantised())
      return gather_quantised<T>(matrix<T>(y), table, ids.data<std::int32_t>());
    gather<T>(matrix<T>(y), matrix<T>(table), ids.data<std::int32_t>());
  });
}

void CpuBackend::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  dispatch_float(y.dtype(), [&]<class T>() {
    gather<T>(matrix<T>(y), {x.data<T>(), x.rows(), x.cols(), x.ld()}, rows.data<std::int32_t>());
  });
}

void CpuBackend::put_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
  dispatch_float(y.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(y), from = matrix<T>(x);
    const std::int32_t* index = rows.data<std::int32_t>();
    check_rows(index, from.rows, to.rows);
    parallel_for(from.rows, x.numel(),
                 [&](std::int64_t i) { std::copy_n(from[i], from.cols, to[index[i]]); });
  });
}

void CpuBackend::scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy,
                              const Tensor& rows) {
  if (mode == GradMode::Write) fill(dx, 0);
  dispatch_float(dx.dtype(), [&]<class T>() {
    Matrix<T> to = matrix<T>(dx), from = matrix<T>(dy);
    const std::int32_t* index = rows.data<std::int32_t>();
    check_rows(index, from.rows, to.rows);
    parallel_for(from.rows, dy.numel(), [&](std::int64_t i) {  // rows are distinct: no two writers
      for (std::int64_t j = 0; j < from.cols; ++j) put(to[index[i]][j], mode, load(from[i][j]));
    });
  });
}

}  // namespace lk
