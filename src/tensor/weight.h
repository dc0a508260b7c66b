// Weight: a frozen tensor of the base model.
//
// Note [Frozen by type]: a Weight has no gradient, no way to become a Parameter or a Var, and hands
// out its values only to Backend implementations and to readers (hash, merge, embedding). There is
// no flag to forget: ops that take a Weight have no code that could compute its gradient.
#pragma once

#include <memory>
#include <string>

#include "tensor/tensor.h"

namespace lk {

// A backend's own form of a weight (tiles packed for its matmul, say). Opaque to everyone else.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

class Weight {
 public:
  Weight() = default;
  Weight(std::string name, Tensor values) : name_(std::move(name)), values_(std::move(values)) {}

  bool defined() const { return values_.defined(); }
  const std::string& name() const { return name_; }
  const Shape& shape() const { return values_.shape(); }
  DType dtype() const { return values_.dtype(); }
  std::int64_t numel() const { return values_.numel(); }
  const Weight& expect(const Shape& shape, const char* what) const {
    check(defined(), what, ": missing weight");
    values_.expect(shape, what);
    return *this;
  }
  // Row-major values as loaded; read-only by contract: Backends only read it.
  const Tensor& values() const { return values_; }

  // Filled by Backend::prepare_linear at load, used by its linear_forward and linear_backward_x.
  const PackedWeight* packed() const { return packed_.get(); }
  void set_packed(std::shared_ptr<const PackedWeight> packed) { packed_ = std::move(packed); }

 private:
  std::string name_;
  Tensor values_;
  std::shared_ptr<const PackedWeight> packed_;
};

}  // namespace lk
