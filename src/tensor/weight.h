// Weight: a frozen tensor of the base model.
//
// Note [Frozen by type]: a Weight has no gradient, no way to become a Parameter or a Var, and hands
// out its values only to Backend implementations and to readers (hash, merge, embedding). There is
// no flag to forget: ops that take a Weight have no code that could compute its gradient.
#pragma once

#include <memory>
#include <string>

#include "tensor/quantised.h"
#include "tensor/tensor.h"
#include "tensor/weight_source.h"

namespace lk {

// A backend's own form of a weight (for example, tiles packed for its matmul), opaque to all else.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

// A dense matrix, or a quantised one (tensor/quantised.h), which only linear_forward,
// linear_backward_x and embedding_forward read.
class Weight {
 public:
  Weight() = default;
  Weight(std::string name, Tensor values)
      : name_(std::move(name)),
        values_(std::move(values)),
        shape_(values_.shape()),
        dtype_(values_.dtype()) {}
  // A quantised weight of the values (N,K). `dtype` is that of the activations that it is used with.
  Weight(std::string name, QuantisedMatrix q, Shape shape, DType dtype)
      : name_(std::move(name)),
        shape_(shape),
        dtype_(dtype),
        quantised_(std::make_shared<const QuantisedMatrix>(std::move(q))) {
    check_planes(*quantised_, shape_, name_);
  }

  bool defined() const { return values_.defined() || quantised_; }
  const std::string& name() const { return name_; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  std::int64_t numel() const { return shape_.numel(); }
  const Weight& expect(const Shape& shape, const char* what) const {
    check(defined(), what, ": missing weight");
    if (shape_ == shape) return *this;
    throw Error(concat(what, ": expected ", shape, ", got ", shape_));
  }
  // Row-major values as loaded, read-only by contract. Throws Error if the weight is quantised.
  const Tensor& values() const {
    check(!quantised_, name_, ": is quantised and has no dense values");
    if (source_) source_->want();
    return values_;
  }
  // The codes and scales, null if the weight is dense. They have no planes once a backend has packed
  // them for inference.
  const QuantisedMatrix* quantised() const {
    if (source_) source_->want();
    return quantised_.get();
  }
  // What brings its numbers when they are asked for; null if they are always there.
  const WeightSource* source() const { return source_.get(); }
  void set_source(std::shared_ptr<WeightSource> source) { source_ = std::move(source); }
  // Whether its values can be had: false once a quantised weight is packed for inference.
  bool has_values() const { return !quantised_ || (*quantised_)[Plane::Codes].defined(); }

  // The packed form that Backend::prepare_linear made at load, for both products.
  const PackedWeight* packed() const { return packed_.get(); }
  void set_packed(std::shared_ptr<const PackedWeight> packed) { packed_ = std::move(packed); }
  // Puts the packed form in the place of codes and scales.
  void replace_quantised(std::shared_ptr<const PackedWeight> packed) {
    check(quantised_ != nullptr, name_, ": is not quantised");
    packed_ = std::move(packed);
    quantised_ = std::make_shared<QuantisedMatrix>(QuantisedMatrix{quantised_->format, 0, {}});
  }

  // The same memory under another name, for a tied head, without a dense weight's packed form.
  Weight renamed(std::string name) const {
    Weight w = *this;
    w.name_ = std::move(name);
    if (!quantised_) w.packed_ = nullptr;
    return w;
  }
  bool same_memory(const Weight& other) const {
    return values_.raw() == other.values_.raw() && quantised_ == other.quantised_;
  }

 private:
  std::string name_;
  Tensor values_;  // undefined if quantised
  Shape shape_;
  DType dtype_ = DType::F32;
  std::shared_ptr<const QuantisedMatrix> quantised_;
  std::shared_ptr<const PackedWeight> packed_;
  std::shared_ptr<WeightSource> source_;
};

}  // namespace lk
