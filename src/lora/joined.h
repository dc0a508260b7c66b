// Moves the projections that an adapter trains into joined matrices: see Note [Joined projections]
// in autograd/joined.h.
#pragma once

#include "lora/adapter.h"

namespace lk {

// Joins q, k and v; o; gate and up; and down of every layer that the adapter is on, but for those
// before the first that trains, which no gradient reaches: joined they would keep more of what
// nobody reads. What is not joined stays where it is, without a copy. False, with nothing done, with
// DoRA and dropout together (PEFT then drops two inputs), or if projections that would share a matrix
// have different scales, as an alpha_pattern can give them: the model keeps the plain path.
// Layer by layer the weights are copied and the old memory returned to the driver, so the peak is
// one projection more than the model; the ledger's peaks start anew afterwards.
bool join_projections(Transformer& model, Adapter& adapter);

}  // namespace lk
