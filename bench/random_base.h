// A base of random numbers, held as one that is loaded would be.
#pragma once

#include "modelfile/base_precision.h"
#include "nn/streamed_base.h"

namespace lk::bench {

// Each matrix is quantised, and sent to where it waits, as soon as it is made, so that the base need not
// fit as a dense one. Of a quantised base all layers have the same codes: to make those of 70 billion
// numbers takes minutes, and how long a product takes does not depend on them. `group`: who holds it in
// parts, if anyone. `blocks`: the type that holds what `storage` would quantise, instead.
ModelWeights random_base(Backend& backend, const ModelConfig& config, DType dtype,
                         const BaseStorage& storage, const ShardGroup* group = nullptr,
                         const GgmlType* blocks = nullptr);

}  // namespace lk::bench
