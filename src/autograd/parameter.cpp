#include "autograd/parameter.h"

namespace lk {

Parameter::Parameter(std::string name, Tensor value, DType compute_dtype)
    : name_(std::move(name)), value_(std::move(value)) {
  check(value_.defined(), "parameter ", name_, ": has no value");
  check(value_.dtype() == DType::F32 || value_.dtype() == DType::F64, "parameter ", name_,
        ": masters are f32, got ", dtype_name(value_.dtype()));
  check(value_.storage().tag() != Tag::Weights, "parameter ", name_, ": this memory is frozen");
  check(value_.contiguous(), "parameter ", name_, ": not contiguous");
  Backend& backend = value_.backend();
  grad_ = backend.empty_gradient(PassKey<Parameter>{}, value_.dtype(), value_.shape());
  if (compute_dtype != value_.dtype()) {
    compute_ = backend.empty(Tag::Params, compute_dtype, value_.shape());
    refresh();
  }
}

Sink Parameter::sink() {
  GradMode mode = has_grad_ ? GradMode::Add : GradMode::Write;
  has_grad_ = true;
  return {grad_, mode};
}

void Parameter::keep_copy_in(Tensor place) {
  place.expect(shape(), "keep_copy_in");
  compute_ = std::move(place);
  refresh();
}

void Parameter::refresh() {
  changed();
  if (compute_.defined()) value_.backend().copy(compute_, value_);
}

}  // namespace lk
