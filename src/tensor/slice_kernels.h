// SliceKernels: what processes need of a device that each update a slice of the numbers they train
// (dist/shared_step.h): sums of squares in two halves, and many copies at once. Every device has them
// (Backend::slice_kernels).
#pragma once

#include <span>

#include "tensor/tensor.h"

namespace lk {

class SliceKernels {
 public:
  virtual ~SliceKernels() = default;
  SliceKernels(const SliceKernels&) = delete;
  SliceKernels& operator=(const SliceKernels&) = delete;

  // Backend::sum_squares() cuts a tensor into pieces of piece() numbers, the last of which may be
  // shorter; it sums the squares of each, in sum_dtype(), and then adds these sums in order. Here
  // the two halves are apart: who has a slice of the tensors that begins and ends where pieces do can
  // sum it, and all can add the sums to the bits of the whole.
  std::int64_t piece() const { return piece_; }
  DType sum_dtype() const { return sum_dtype_; }
  // sums (n) = of each of the tensors' pieces, in order, the sum of x^2. Tensors contiguous.
  virtual void square_sums(const Tensor& sums, std::span<const Tensor> tensors) = 0;
  // out (1) F32|F64 = sums[0] + sums[1] + ..., as sum_squares() adds them.
  virtual void add_square_sums(const Tensor& out, const Tensor& sums) = 0;

  // to = from, as Backend::copy() does it, for any number of tensors at once: a launch for each would take
  // longer than most of these copies. `from` F32 (F64 in checks), contiguous; `to` of the same number of
  // elements, in that dtype or BF16, contiguous or a matrix with a row stride. None is copied to twice, or
  // both read and written.
  struct Copy {
    Tensor to, from;
  };
  virtual void copy_many(std::span<const Copy> copies) = 0;

 protected:
  SliceKernels(std::int64_t piece, DType sum_dtype) : piece_(piece), sum_dtype_(sum_dtype) {}

 private:
  std::int64_t piece_;
  DType sum_dtype_;
};

// Kernels that do nothing, for devices that only keep the books.
class NoSliceKernels final : public SliceKernels {
 public:
  NoSliceKernels(std::int64_t piece, DType sum_dtype) : SliceKernels(piece, sum_dtype) {}
  void square_sums(const Tensor&, std::span<const Tensor>) override {}
  void add_square_sums(const Tensor&, const Tensor&) override {}
  void copy_many(std::span<const Copy>) override {}
};

}  // namespace lk
