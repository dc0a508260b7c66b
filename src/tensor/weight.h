// Weight: a frozen tensor of the base model.
//
// Note [Frozen by type]: a Weight has no gradient, no way to become a Parameter or a Var, and hands
// out its values only to Backend implementations and to readers (hash, merge, embedding). There is
// no flag to forget: ops that take a Weight have no code that could compute its gradient.
#pragma once

#include <memory>
#include <string>

#include "tensor/ggml_type.h"
#include "tensor/tensor.h"

namespace lk {

// A backend's own form of a weight (for example, tiles packed for its matmul). Opaque to everyone
// else.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

// A dense matrix, or a quantised one that is kept in a file's blocks for inference. Only
// linear_forward and embedding_forward read quantised ones.
class Weight {
 public:
  Weight() = default;
  Weight(std::string name, Tensor values)
      : name_(std::move(name)),
        values_(std::move(values)),
        shape_(values_.shape()),
        dtype_(values_.dtype()) {}
  // A quantised weight: blocks U8 (N, bytes per row) for the values (N,K). `dtype` is that of the
  // activations that it is used with. `type` must outlive the Weight.
  Weight(std::string name, Tensor blocks, Shape shape, const GgmlType& type, DType dtype)
      : name_(std::move(name)),
        values_(std::move(blocks)),
        shape_(shape),
        dtype_(dtype),
        type_(&type) {
    check(shape.rank() == 2 && shape[1] % type.block_values == 0, name_, ": ", shape, " as ",
          type.name);
    values_.expect({shape[0], type.row_bytes(shape[1])}, "quantised weight: blocks");
  }

  bool defined() const { return values_.defined() || packed_; }
  const std::string& name() const { return name_; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  std::int64_t numel() const { return shape_.numel(); }
  const Weight& expect(const Shape& shape, const char* what) const {
    check(defined(), what, ": missing weight");
    if (shape_ == shape) return *this;
    throw Error(concat(what, ": expected ", shape, ", got ", shape_));
  }
  // Row-major values as loaded, read-only by contract. Throws Error if the weight is quantised:
  // nothing can be trained on top of it then.
  const Tensor& values() const {
    check(!type_, name_, ": quantised weights are for inference only");
    return values_;
  }
  // The type of the blocks; null if the weight is dense.
  const GgmlType* quantised() const { return type_; }
  // The blocks as stored; undefined once a backend has packed them.
  const Tensor& blocks() const { return values_; }

  // The packed form that Backend::prepare_linear made at load; linear_forward and linear_backward_x
  // use it.
  const PackedWeight* packed() const { return packed_.get(); }
  void set_packed(std::shared_ptr<const PackedWeight> packed) { packed_ = std::move(packed); }
  // Puts the packed form in the place of the blocks.
  void replace_blocks(std::shared_ptr<const PackedWeight> packed) {
    check(type_, name_, ": has no blocks");
    packed_ = std::move(packed);
    values_ = Tensor();
  }

  // The same memory under another name, for a tied head. The packed form of a dense weight is not
  // taken along.
  Weight renamed(std::string name) const {
    Weight w = *this;
    w.name_ = std::move(name);
    if (!type_) w.packed_ = nullptr;
    return w;
  }
  bool same_memory(const Weight& other) const {
    return values_.raw() == other.values_.raw() && (values_.defined() || packed_ == other.packed_);
  }

 private:
  std::string name_;
  Tensor values_;  // or blocks
  Shape shape_;
  DType dtype_ = DType::F32;
  const GgmlType* type_ = nullptr;
  std::shared_ptr<const PackedWeight> packed_;
};

}  // namespace lk
