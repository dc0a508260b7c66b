#include "nn/adamw.h"

#include <algorithm>
#include <cmath>

namespace lk {

AdamW::AdamW(std::vector<Parameter*> parameters, const AdamWConfig& config, const Rates& rates,
             std::vector<Slice> slices)
    : parameters_(std::move(parameters)), config_(config), slices_(std::move(slices)) {
  require(!parameters_.empty(), "AdamW: no parameters");
  auto is_rate = [](float beta) { return beta >= 0 && beta < 1; };
  require(is_rate(config.beta1), "beta1 ", config.beta1, ": must be in [0, 1)");
  require(is_rate(config.beta2), "beta2 ", config.beta2, ": must be in [0, 1)");
  require(std::isfinite(config.eps) && config.eps > 0, "eps ", config.eps, ": must be positive");
  require(std::isfinite(config.weight_decay) && config.weight_decay >= 0, "weight_decay ",
          config.weight_decay, ": must not be negative");
  check(slices_.empty() || slices_.size() == parameters_.size(), "AdamW: not a slice of each");
  const Tensor& first = parameters_[0]->value();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter* p = parameters_[i];
    Backend& backend = p->value().backend();
    check(&backend == &first.backend() && p->value().dtype() == first.dtype(), "AdamW: ", p->name(),
          " is on another device or of another dtype than ", parameters_[0]->name());
    check(std::find(parameters_.begin(), parameters_.begin() + static_cast<std::ptrdiff_t>(i), p) ==
              parameters_.begin() + static_cast<std::ptrdiff_t>(i),
          "AdamW: ", p->name(), " appears twice");
    const auto own = [&](const Tensor& x) {
      if (slices_.empty()) return x;
      return x.reshape({x.numel()}).slice_rows(slices_[i].begin, slices_[i].end);
    };
    AdamWSlot slot;
    slot.value = own(p->value());
    slot.grad = own(p->grad());
    slot.m = backend.empty_moment(PassKey<AdamW>{}, p->value().dtype(), slot.value.shape());
    slot.v = backend.empty_moment(PassKey<AdamW>{}, p->value().dtype(), slot.value.shape());
    backend.fill(slot.m, 0);
    backend.fill(slot.v, 0);
    if (slices_.empty() && p->has_compute_copy()) slot.compute = p->compute();
    slot.weight_decay = p->decays() ? config_.weight_decay : 0;
    if (rates) slot.lr_factor = rates(*p);
    slots_.push_back(std::move(slot));
  }
}

// A parameter that no micro-batch used still holds the last step's gradient: set it to zero.
void AdamW::zero_unwritten() {
  for (Parameter* p : parameters_) {
    if (p->has_grad()) continue;
    Sink sink = p->sink();
    sink.tensor.backend().fill(sink.tensor, 0);
  }
}

Tensor AdamW::grad_norm_sq() {
  Tensor norm_sq = slots_[0].value.backend().empty(Tag::Workspace, dtype(), {1});
  grad_norm_sq(norm_sq);
  return norm_sq;
}

void AdamW::grad_norm_sq(const Tensor& norm_sq) {
  check(slices_.empty(), "AdamW: the norm of slices is that of no gradient");
  zero_unwritten();
  std::vector<Tensor> grads;
  for (const AdamWSlot& slot : slots_) grads.push_back(slot.grad);
  slots_[0].value.backend().sum_squares(norm_sq, grads);
}

void AdamW::begin_step(float lr) {
  step_.lr = lr;
  step_.beta1 = config_.beta1;
  step_.beta2 = config_.beta2;
  step_.eps = config_.eps;
  step_.step = ++steps_done_;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Parameter& p = *parameters_[i];
    p.changed();
    const bool copies = slices_.empty() && p.has_compute_copy();
    check(slots_[i].compute.raw() == (copies ? p.compute().raw() : nullptr),
          "AdamW: the compute copy of ", p.name(), " moved after the optimizer was made");
  }
  const Tensor& value = slots_[0].value;
  Backend& backend = value.backend();
  if (!backend.traits().can_record || value.dtype() != DType::F32) return;
  const auto t = static_cast<double>(step_.step);
  const double first = 1 - std::pow(static_cast<double>(step_.beta1), t);
  const double second = 1 - std::pow(static_cast<double>(step_.beta2), t);
  const float rates[3] = {lr, static_cast<float>(lr / first),
                          static_cast<float>(1 / std::sqrt(second))};
  if (!step_.rates) step_.rates = backend.empty(Tag::Workspace, DType::F32, {3});
  backend.upload(step_.rates, rates, sizeof rates);
}

void AdamW::update(float max_norm, const Tensor& norm_sq) {
  norm_sq.expect({1}, "AdamW: norm_sq (1)");
  zero_unwritten();
  step_.max_norm = max_norm;
  slots_[0].value.backend().adamw(slots_, step_, norm_sq);
}

}  // namespace lk
