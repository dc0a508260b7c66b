// Moves the projections of a model that an adapter trains into joined matrices: see Note [Joined
// projections] in autograd/joined.h.
#pragma once

#include "lora/adapter.h"

namespace lk {

// Joins q, k and v, and gate and up, of every layer where one of them trains; o and down, which have
// an input of their own, where they do. What trains nothing stays as it is, without a copy. False,
// with nothing done, if the model's block is not LLaMA's (norms of q and k, GEGLU, LayerNorm): it
// keeps the plain path. Layer by layer the weights are copied and the old memory returned to the
// driver, so the peak is one projection more than the model; the ledger's peaks start anew
// afterwards.
bool join_projections(Transformer& model, Adapter& adapter);

}  // namespace lk
