// Costs of the optimizer's ops, which have no derivative.
#include "autograd/work.h"

namespace lk {

Work work::sum_squares(const Tensor&, std::span<const Tensor> tensors) {
  Work w{OpFamily::Optimizer};
  for (const Tensor& t : tensors) w.bytes += size(t);
  return w;
}

// Value and moments are read and written.
Work work::adamw(std::span<const AdamWSlot> slots, const AdamWStep&, const Tensor&) {
  Work w{OpFamily::Optimizer};
  for (const AdamWSlot& s : slots)
    w.bytes += 2 * sizes(s.value, s.m, s.v) + sizes(s.grad, s.compute);
  return w;
}

}  // namespace lk
