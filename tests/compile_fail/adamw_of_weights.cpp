// The optimizer takes no frozen weights.
// expect: no known conversion for argument 1 from 'vector<lk::Weight*>' to 'vector<lk::Parameter*>'
#include "nn/adamw.h"

namespace lk {

AdamW f(std::vector<Weight*> weights) { return AdamW(weights, AdamWConfig{}); }

}  // namespace lk
