// Moves the projections of a model with an adapter into joined buffers: see Note [Joined projections]
// in autograd/joined.h.
#pragma once

#include "lora/adapter.h"

namespace lk {

// False, with nothing done, if the model's block is not LLaMA's (norms of q and k, GEGLU,
// LayerNorm): it keeps the plain path. Layer by layer the weights are copied and the old memory
// returned to the driver, so the peak is one projection more than the model; the ledger's peaks
// start anew afterwards.
bool join_projections(Transformer& model, Adapter& adapter);

}  // namespace lk
