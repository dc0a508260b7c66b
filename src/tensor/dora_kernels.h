// DoraKernels: what DoRA (lora/dora.h) computes by rows of the weight, that is by columns of the
// output. Every device has them.
//
// m, inverse, w_sq (N), wa (N,R) and gram (R,R) are F32 (F64 for F64), the rest is of the compute
// dtype. s is LoRA's scale.
#pragma once

#include "tensor/backend.h"

namespace lk {

class DoraKernels {
 public:
  virtual ~DoraKernels() = default;
  DoraKernels(const DoraKernels&) = delete;
  DoraKernels& operator=(const DoraKernels&) = delete;

  // inverse_n = 1 / |row n of W + s B A|, or 0 where that row is zero. The row's square is
  //   w_sq_n + 2 s sum_r wa_nr b_nr + s^2 sum_rq b_nr gram_rq b_nq
  // with w_sq_n = |row n of W|^2, wa = W Aᵀ and gram = A Aᵀ, so no matrix as large as W is made.
  virtual void inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Tensor& wa,
                             const Tensor& gram, const Tensor& b, double s) = 0;
  // y (T,N) (+)= m inverse x (T,N), column by column; y may be x. With `shift` (N), mode is Write
  // and y = m inverse (x - shift) + shift.
  virtual void scale_columns(const Tensor& y, GradMode mode, const Tensor& x, const Tensor& m,
                             const Tensor& inverse, const Weight* shift = nullptr) = 0;
  // The backward of y = m inverse v with constant norms: dv (T,N) = m inverse dy (T,N), and
  // dm (N) (+)= inverse sum over t of dy v (T,N). dv may be dy. Counts as one weight gradient
  // (Backend::weight_gradient_matmuls).
  void scale_columns_backward(const Tensor& dv, const Tensor& dm, GradMode mode, const Tensor& dy,
                              const Tensor& v, const Tensor& m, const Tensor& inverse) {
    ++weight_gradients_;
    run_scale_columns_backward(dv, dm, mode, dy, v, m, inverse);
  }

 protected:
  // `weight_gradients` is the device's count.
  explicit DoraKernels(std::int64_t& weight_gradients) : weight_gradients_(weight_gradients) {}
  virtual void run_scale_columns_backward(const Tensor& dv, const Tensor& dm, GradMode mode,
                                          const Tensor& dy, const Tensor& v, const Tensor& m,
                                          const Tensor& inverse) = 0;

 private:
  std::int64_t& weight_gradients_;
};

// Kernels that do nothing, for devices that only keep the books.
class NoDoraKernels final : public DoraKernels {
 public:
  explicit NoDoraKernels(std::int64_t& weight_gradients) : DoraKernels(weight_gradients) {}
  void inverse_norms(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     double) override {}
  void scale_columns(const Tensor&, GradMode, const Tensor&, const Tensor&, const Tensor&,
                     const Weight*) override {}

 private:
  void run_scale_columns_backward(const Tensor&, const Tensor&, GradMode, const Tensor&,
                                  const Tensor&, const Tensor&, const Tensor&) override {}
};

}  // namespace lk
