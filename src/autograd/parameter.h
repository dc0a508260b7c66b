// Parameter: a trainable matrix: its value, its gradient and, in BF16 runs, a compute-dtype copy.
#pragma once

#include <string>

#include "tensor/backend.h"

namespace lk {

// Where a gradient goes and how. Converts to false, and holds no tensor, when nobody wants it.
struct Sink {
  Tensor tensor;
  GradMode mode = GradMode::Write;
  explicit operator bool() const { return tensor.defined(); }
};

class Parameter {
 public:
  // `value`, F32 (F64 in checks), is the master. Allocates the gradient buffer: a Parameter always
  // has one. With compute_dtype BF16 it keeps a BF16 copy, which refresh() and the optimizer
  // update.
  Parameter(std::string name, Tensor value, DType compute_dtype);
  Parameter(Parameter&&) = default;
  Parameter& operator=(Parameter&&) = default;

  const std::string& name() const { return name_; }
  const Shape& shape() const { return value_.shape(); }
  std::int64_t numel() const { return value_.numel(); }
  const Tensor& value() const { return value_; }
  // What matmuls read: the BF16 copy, or the value itself.
  const Tensor& compute() const { return compute_.defined() ? compute_ : value_; }
  bool has_compute_copy() const { return compute_.defined(); }
  const Tensor& grad() const { return grad_; }

  // The gradient buffer; Write for the first use since zero_grad(), Add for the following ones.
  Sink sink();
  // Forgets the gradient: no memory is touched, the next sink() overwrites.
  void zero_grad() { has_grad_ = false; }
  bool has_grad() const { return has_grad_; }
  // From now on keeps the compute copy in `place`, a matrix of the same shape that may have a row
  // stride. Parameters of compute dtype F32 or F64 get a copy too.
  void keep_copy_in(Tensor place);
  // Copies value into the compute copy after the value was changed from outside.
  void refresh();
  // Whether weight decay applies to it.
  bool decays() const { return decays_; }
  void set_decays(bool decays) { decays_ = decays; }
  // Another number whenever the value may have changed: for what is computed from it and kept.
  std::uint64_t version() const { return version_; }
  void changed() { ++version_; }

 private:
  std::string name_;
  Tensor value_, grad_, compute_;
  bool has_grad_ = false, decays_ = true;
  std::uint64_t version_ = 1;
};

}  // namespace lk
