// What Backend::adamw() reads and writes: a parameter's buffers and the numbers of an update.
#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace lk {

// One parameter's buffers for the optimizer, each flat and contiguous with `numel` elements.
struct AdamWSlot {
  Tensor value, grad, m, v;  // F32 (F64 in checks)
  Tensor compute;            // BF16 copy refreshed with the new value: a matrix that may have a
                             // row stride; undefined if not needed
  float weight_decay = 0;
  float lr_factor = 1;  // of the step's learning rate
};

struct AdamWStep {
  float lr = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;
  std::int64_t step = 1;  // 1 for the first update; bias corrections are 1 - beta^step
  float max_norm = 0;     // > 0: gradients are scaled by min(1, max_norm / (norm + 1e-6))
  // The numbers that change from step to step, (3) F32 on the device, so that recorded work reads
  // the current ones: lr, lr / (1 - beta1^step), 1 / sqrt(1 - beta2^step). Undefined: they come
  // from the fields above.
  Tensor rates = {};
};

}  // namespace lk
