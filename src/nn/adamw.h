// AdamW over Parameters, and over nothing else: its constructor takes no Weight. Source: Loshchilov
// & Hutter, "Decoupled Weight Decay Regularization", 2019; update order as in torch.optim.AdamW.
#pragma once

#include <functional>
#include <vector>

#include "autograd/parameter.h"

namespace lk {

struct AdamWConfig {
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
  float weight_decay = 0;
};

class AdamW {
 public:
  // Allocates two moments per parameter, zero, in the masters' dtype. The parameters (distinct, of
  // one device and dtype) must outlive it and stay where they are. Throws UsageError for a setting
  // out of its range. `rates` gives each parameter's factor of the learning rate; empty: 1.
  using Rates = std::function<float(const Parameter&)>;
  // With `slices` it has moments of numbers [begin, end) of each parameter alone, and updates only
  // these, in no compute copy: other processes update the rest (dist/shared_step.h).
  struct Slice {
    std::int64_t begin = 0, end = 0;
  };
  AdamW(std::vector<Parameter*> parameters, const AdamWConfig& config, const Rates& rates = {},
        std::vector<Slice> slices = {});

  // The squared global norm (1) of all gradients, on the device. A parameter whose gradient nobody
  // has written since zero_grad() counts as zero.
  Tensor grad_norm_sq();
  void grad_norm_sq(const Tensor& norm_sq);
  // One update of every parameter. With g = grad * min(1, max_norm / (norm + 1e-6)) if max_norm > 0
  // (else grad), t = steps_done() + 1:
  //   p -= lr wd p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
  //   p -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
  // If norm_sq is not finite nothing is updated (the device decides), but the step counts.
  void step(float lr, float max_norm, const Tensor& norm_sq) {
    begin_step(lr);
    update(max_norm, norm_sq);
  }
  // The two halves of step(), for recorded work: begin_step() counts the step and uploads its
  // rates, the other half is the same every time.
  void begin_step(float lr);
  void update(float max_norm, const Tensor& norm_sq);

  DType dtype() const { return slots_[0].value.dtype(); }
  std::int64_t steps_done() const { return steps_done_; }
  void set_steps_done(std::int64_t steps) { steps_done_ = steps; }
  // For checkpoints: the parameters in order; of parameter i the moments, and which numbers have any.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  Slice slice(std::size_t i) const {
    return slices_.empty() ? Slice{0, parameters_[i]->numel()} : slices_[i];
  }
  const Tensor& moment_m(std::size_t i) const { return slots_[i].m; }
  const Tensor& moment_v(std::size_t i) const { return slots_[i].v; }

 private:
  void zero_unwritten();

  std::vector<Parameter*> parameters_;
  AdamWConfig config_;
  std::vector<Slice> slices_;  // empty: all numbers
  std::vector<AdamWSlot> slots_;
  AdamWStep step_;
  std::int64_t steps_done_ = 0;
};

}  // namespace lk
