// 10. Gradient accumulation's divisor.
//
// A batch of rows may not fit in memory. So it goes through the model in micro-batches whose
// gradients add up. The loss is the mean over all supervised tokens of the batch, and cutting it up
// must not change the gradient. Below, each micro-batch takes its own mean, and the means are
// averaged: that is right only if all of them have the same number of tokens.
//
// Hints
// - head_loss sums -log p over its rows and multiplies the sum by a factor. What is that factor,
//   for a micro-batch of n tokens out of a batch of n_all?
// - A Parameter's gradient adds up until zero_grad(): that part is right.
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
  for (const MicroBatch& m : micro_batches) {
    const auto n =
        static_cast<double>(m.targets.numel()) * static_cast<double>(micro_batches.size());
    Tape tape(backend);
    tape.backward(head_loss(tape, linear(tape, Var(m.x), w), head, m.targets, 1 / n, 8));
  }
  // ---- end ----
}

}  // namespace lk::exercise
