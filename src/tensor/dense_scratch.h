// DenseScratch: a dense matrix that lives as long as one product, made of quantised weights.
//
// It takes no copies and never hands its numbers out as a Tensor, so nothing can keep them: no node
// of a tape can save them. Two products in a row use the same memory.
#pragma once

#include <optional>

#include "tensor/backend.h"

namespace lk {

class DenseScratch {
 public:
  // (rows, cols) without values, with `margin` unused columns behind each row.
  DenseScratch(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
               std::int64_t margin = 0)
      : matrix_(backend.empty_with_margin(Tag::Workspace, dtype, {rows, cols}, margin)) {}
  // The values of w.
  DenseScratch(Backend& backend, const Weight& w)
      : DenseScratch(backend, w.dtype(), w.shape()[0], w.shape()[1]) {
    put(0, w);
  }
  DenseScratch(const DenseScratch&) = delete;
  DenseScratch& operator=(const DenseScratch&) = delete;

  // Puts a weight, dense or not, at (row, 0), and a matrix of the same dtype at (row, col).
  void put(std::int64_t row, const Weight& w);
  void put(std::int64_t row, std::int64_t col, const Tensor& x);

  // y (T,N) = x (T,K) Sᵀ, or dx (T,K) (+)= dy (T,N) S: what linear_forward and linear_backward_x
  // compute of a dense weight.
  void linear_forward(const Tensor& y, const Tensor& x) const;
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy) const;
  // As Backend::matmul_nt and matmul_nn.
  void matmul_nt(const Tensor& y, const Tensor& x, const Tensor& addend) const;
  void matmul_nn(const Tensor& dx, GradMode mode, const Tensor& dy) const;
  // c (N,R) = S (N,K) a (R,K)ᵀ
  void times(const Tensor& c, const Tensor& a) const;
  // Calls look(first, last, rows) for parts of the rows, on several threads.
  void look(const Backend::LookAtUnits& look) const;

 private:
  Tensor matrix_;
};

// Bytes that a weight takes where it lies.
inline double stored_bytes(const Weight& w) {
  if (!w.quantised()) return static_cast<double>(w.values().bytes());
  double bytes = 0;
  for (const Tensor& plane : w.quantised()->planes)
    if (plane) bytes += static_cast<double>(plane.bytes());
  return bytes;
}

// A weight for several products: a quantised one is dequantised once for all of them. One that says
// so is multiplied in FP8 forward, but not backward: most of a softmax's gradient lies in numbers too
// small for its row's scale. `w` must stay.
class DenseWeight {
 public:
  DenseWeight(Backend& backend, const Weight& w) : backend_(backend), w_(w) {}
  void linear_forward(const Tensor& y, const Tensor& x) {
    if (!dequantises() || w_.quantised()->format.multiplied)
      return backend_.linear_forward(y, x, w_);
    dense().linear_forward(y, x);
  }
  void linear_backward_x(const Tensor& dx, GradMode mode, const Tensor& dy) {
    if (!dequantises()) return backend_.linear_backward_x(dx, mode, dy, w_);
    dense().linear_backward_x(dx, mode, dy);
  }

 private:
  bool dequantises() const { return w_.quantised() && w_.has_values(); }
  const DenseScratch& dense() {
    if (!dense_) dense_.emplace(backend_, w_);
    return *dense_;
  }
  Backend& backend_;
  const Weight& w_;
  std::optional<DenseScratch> dense_;
};

}  // namespace lk
