// DoraKernels: what DoRA (lora/dora.h) computes by rows of the weight, that is by columns of the
// output. Every device has them.
//
// Projections that share an input lie side by side (autograd/joined.h): one call serves the parts of
// them that have magnitudes. The statistics, m, inverse, w_sq, wa and gram, are F32 (F64 for F64), the
// rest is of the compute dtype. s is LoRA's scale.
#pragma once

#include <span>

#include "tensor/backend.h"

namespace lk {

// The row norms of one projection, with N rows and rank R.
struct DoraNorms {
  Tensor inverse;      // (N), 1 / |row of W + s B A|
  Tensor w_sq;         // (N), |row of W|^2
  Tensor wa, gram, b;  // (N,R) = W Aᵀ, (R,R) = A Aᵀ and (N,R)
  double scale = 1;    // s
};

// Rows [begin, end) of W, which are columns of y. Parts lie in order; what a call doesn't read may be
// undefined. The vectors are of the part's rows.
struct DoraPart {
  std::int64_t begin = 0, end = 0;
  Tensor m = {};        // magnitudes
  Tensor inverse = {};  // 1 / |row of W + s B A|
  Tensor dm = {};       // m's gradient, written or added to
  GradMode mode = GradMode::Write;
};

class DoraKernels {
 public:
  virtual ~DoraKernels() = default;
  DoraKernels(const DoraKernels&) = delete;
  DoraKernels& operator=(const DoraKernels&) = delete;

  // inverse_n = 1 / |row n of W + s B A| of each projection, or 0 where that row is zero. Its square is
  //   w_sq_n + 2 s sum_r wa_nr b_nr + s^2 sum_rq b_nr gram_rq b_nq
  // so no matrix as large as W is made.
  virtual void inverse_norms(std::span<const DoraNorms> all) = 0;
  // y (T,N) = m inverse x (T,N) + addend (T,N), or + 0 if undefined, column by column; a column of no
  // part is only added to. y may be x. With `shift` (N) there is no addend, and
  // y = m inverse (x - shift) + shift.
  virtual void scale_columns(const Tensor& y, const Tensor& x, const Tensor& addend,
                             std::span<const DoraPart> parts, const Weight* shift = nullptr) = 0;
  // The backward of y = m inverse v with constant norms: dv (T,N) = m inverse dy (T,N), and
  // dm (N) (+)= inverse sum over t of dy v (T,N); a column of no part is copied. dv may be dy. A part
  // counts as one weight gradient (Backend::weight_gradient_matmuls).
  void scale_columns_backward(const Tensor& dv, const Tensor& dy, const Tensor& v,
                              std::span<const DoraPart> parts) {
    weight_gradients_ += std::ssize(parts);
    run_scale_columns_backward(dv, dy, v, parts);
  }

 protected:
  // `weight_gradients` is the device's count.
  explicit DoraKernels(std::int64_t& weight_gradients) : weight_gradients_(weight_gradients) {}
  virtual void run_scale_columns_backward(const Tensor& dv, const Tensor& dy, const Tensor& v,
                                          std::span<const DoraPart> parts) = 0;

 private:
  std::int64_t& weight_gradients_;
};

// Kernels that do nothing, for devices that only keep the books.
class NoDoraKernels final : public DoraKernels {
 public:
  explicit NoDoraKernels(std::int64_t& weight_gradients) : DoraKernels(weight_gradients) {}
  void inverse_norms(std::span<const DoraNorms>) override {}
  void scale_columns(const Tensor&, const Tensor&, const Tensor&, std::span<const DoraPart>,
                     const Weight*) override {}

 private:
  void run_scale_columns_backward(const Tensor&, const Tensor&, const Tensor&,
                                  std::span<const DoraPart>) override {}
};

}  // namespace lk
