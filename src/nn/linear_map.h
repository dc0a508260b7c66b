// LinearMap: one projection of a block, y = f(x), frozen unless src/lora wraps an adapter around it.
#pragma once

#include <memory>
#include <string>

#include "autograd/ops.h"
#include "tensor/adapter_kernels.h"

namespace lk {

// What a forward pass needs apart from its input.
struct ForwardMode {
  bool training = false;   // dropout is active
  std::uint64_t seed = 0;  // seed of the run
  std::uint64_t step = 0;  // micro-batches since the run began; keys dropout's masks
  // See RandomKey::first_step. Its memory must stay until the backward has run.
  const std::int32_t* first_step = nullptr;
  // Only with a KV cache: the documents and their variants.
  const Segments* documents = nullptr;
  const RowVariants* variants = nullptr;
};

inline RandomKey dropout_key(const ForwardMode& mode, std::uint32_t site) {
  return {mode.seed, mode.step, site, mode.first_step};
}

class FrozenLinear;

class LinearMap {
 public:
  virtual ~LinearMap() = default;
  // x (T, in) -> (T, out)
  virtual Var apply(Tape& tape, const Var& x, const ForwardMode& mode,
                    Output output = Output::Read) = 0;
  // y (T, out) = x wᵀ + bias becomes f(x). No gradients.
  virtual void adapt(Tape& tape, const Tensor& y, const Tensor& x, const ForwardMode& mode) = 0;
  virtual bool adapts() const { return true; }         // whether adapt() can
  virtual bool scales() const { return false; }        // else adapt() adds, whatever y holds
  virtual std::int64_t variants() const { return 0; }  // that RowVariants may name
  virtual std::int64_t in_features() const = 0;
  virtual std::int64_t out_features() const = 0;
  // The frozen projection inside.
  virtual FrozenLinear& frozen() = 0;
};

// y = x wᵀ + bias, both frozen.
class FrozenLinear : public LinearMap {
 public:
  explicit FrozenLinear(Weight w, Weight bias = {}) : w_(std::move(w)), bias_(std::move(bias)) {}
  Var apply(Tape& tape, const Var& x, const ForwardMode&, Output output = Output::Read) override {
    return linear(tape, x, w_, bias(), output);
  }
  void adapt(Tape&, const Tensor&, const Tensor&, const ForwardMode&) override {}
  std::int64_t in_features() const override { return w_.shape()[1]; }
  std::int64_t out_features() const override { return w_.shape()[0]; }
  FrozenLinear& frozen() override { return *this; }
  const Weight& weight() const { return w_; }
  // Replaces the weight by one with the same values in other memory.
  void set_weight(const Weight& w) { w_ = w.expect(w_.shape(), "set_weight"); }
  const Weight* bias() const { return bias_.defined() ? &bias_ : nullptr; }

 private:
  Weight w_, bias_;
};

}  // namespace lk
