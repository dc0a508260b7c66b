#include "tensor/dense_scratch.h"

#include "tensor/quantised_kernels.h"

namespace lk {

void DenseScratch::put(std::int64_t row, const Weight& w) {
  const Tensor place = matrix_.slice_rows(row, row + w.shape()[0]).slice_cols(0, w.shape()[1]);
  if (w.quantised())
    matrix_.backend().quantised_kernels()->dequantise(place, w);
  else
    matrix_.backend().copy(place, w.values());
}

void DenseScratch::put(std::int64_t row, std::int64_t col, const Tensor& x) {
  matrix_.backend().copy(matrix_.slice_rows(row, row + x.rows()).slice_cols(col, col + x.cols()),
                         x);
}

void DenseScratch::linear_forward(const Tensor& y, const Tensor& x) const {
  matrix_.backend().linear_forward(y, x, Weight("dense scratch", matrix_));
}

void DenseScratch::linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy) const {
  matrix_.backend().linear_backward_x(dx, mode, dy, Weight("dense scratch", matrix_));
}

void DenseScratch::matmul_nt(const Tensor& y, const Tensor& x, const Tensor& addend) const {
  matrix_.backend().matmul_nt(y, GradMode::Write, 1.0, x, matrix_, addend);
}

void DenseScratch::matmul_nn(const Tensor& dx, GradMode mode, const Tensor& dy) const {
  matrix_.backend().matmul_nn(dx, mode, 1.0, dy, matrix_);
}

void DenseScratch::times(const Tensor& c, const Tensor& a) const {
  matrix_.backend().matmul_nt(c, GradMode::Write, 1.0, matrix_, a);
}

void DenseScratch::look(const Backend::LookAtUnits& look) const {
  matrix_.backend().look_at(
      matrix_, static_cast<std::size_t>(matrix_.cols()) * dtype_size(matrix_.dtype()), look);
}

}  // namespace lk
