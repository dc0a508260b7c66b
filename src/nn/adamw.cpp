#include "nn/adamw.h"

#include <algorithm>

namespace lk {

AdamW::AdamW(std::vector<Parameter*> parameters, const AdamWConfig& config)
    : parameters_(std::move(parameters)), config_(config) {
  check(!parameters_.empty(), "AdamW: no parameters");
  const Tensor& first = parameters_[0]->value();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter* p = parameters_[i];
    Backend& backend = p->value().backend();
    check(&backend == &first.backend() && p->value().dtype() == first.dtype(), "AdamW: ", p->name(),
          " is on another device or of another dtype than ", parameters_[0]->name());
    check(std::find(parameters_.begin(), parameters_.begin() + static_cast<std::ptrdiff_t>(i), p) ==
              parameters_.begin() + static_cast<std::ptrdiff_t>(i),
          "AdamW: ", p->name(), " is there twice");
    AdamWSlot slot;
    slot.value = p->value();
    slot.grad = p->grad();
    slot.m = backend.empty_moment(PassKey<AdamW>{}, p->value().dtype(), p->shape());
    slot.v = backend.empty_moment(PassKey<AdamW>{}, p->value().dtype(), p->shape());
    backend.fill(slot.m, 0);
    backend.fill(slot.v, 0);
    if (p->has_compute_copy()) slot.compute = p->compute();
    slot.weight_decay = config_.weight_decay;
    slots_.push_back(std::move(slot));
  }
}

// A parameter that no micro-batch used holds last step's numbers: its gradient is zero now.
void AdamW::zero_unwritten() {
  for (Parameter* p : parameters_) {
    if (p->has_grad()) continue;
    Sink sink = p->sink();
    sink.tensor.backend().fill(sink.tensor, 0);
  }
}

Tensor AdamW::grad_norm_sq() {
  zero_unwritten();
  std::vector<Tensor> grads;
  for (const AdamWSlot& slot : slots_) grads.push_back(slot.grad);
  Backend& backend = slots_[0].value.backend();
  Tensor norm_sq = backend.empty(Tag::Workspace, slots_[0].value.dtype(), {1});
  backend.sum_squares(norm_sq, grads);
  return norm_sq;
}

void AdamW::step(float lr, float max_norm, const Tensor& norm_sq) {
  norm_sq.expect({1}, "AdamW: norm_sq (1)");
  zero_unwritten();
  AdamWStep step;
  step.lr = lr;
  step.beta1 = config_.beta1;
  step.beta2 = config_.beta2;
  step.eps = config_.eps;
  step.step = ++steps_done_;
  step.max_norm = max_norm;
  slots_[0].value.backend().adamw(slots_, step, norm_sq);
}

}  // namespace lk
