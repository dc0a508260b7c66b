// The solution of exercises/10_divisor.h.
//
// The divisor is the number of tokens of the whole batch, so it must be known before the first
// micro-batch runs. In the engine it is n in src/lora/train_step.h.
#pragma once

#include <vector>

#include "autograd/ops.h"

namespace lk::exercise {

struct MicroBatch {
  Tensor x;        // (n,K)
  Tensor targets;  // (n) I32
};

// Leaves in w (C,K) the gradient of the mean loss over all tokens of all micro-batches; head (V,C).
inline void accumulate(Backend& backend, Parameter& w, const Weight& head,
                       const std::vector<MicroBatch>& micro_batches) {
  w.zero_grad();
  // ---- your code ----
  std::int64_t n_all = 0;
  for (const MicroBatch& m : micro_batches) n_all += m.targets.numel();
  for (const MicroBatch& m : micro_batches) {
    const double share = 1 / static_cast<double>(n_all);
    Tape tape(backend);
    tape.backward(head_loss(tape, linear(tape, Var(m.x), w), head, m.targets, share, 8));
  }
  // ---- end ----
}

}  // namespace lk::exercise
