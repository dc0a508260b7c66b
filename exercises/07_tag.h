// 7. Place each allocation under the right tag.
//
// Every allocation says what it is for (tensor/ledger.h), and the proof at the end of a run is a
// set of equalities over these tags: one wrong tag, and it fails. The test runs a LoRA layer with
// dropout whose six allocations take their tags from here, and compares live and peak bytes of
// every tag, at the start, after forward and after backward, with those of the library's layer.
//
// Hints
// - The tags: Weights, Params, Activations, Gradients, Backward, Optimizer, Workspace, KvCache.
// - What lives until backward is an activation. What lives only inside a function is Workspace.
// - Backward is for gradients of activations. The gradient of a Parameter is made by the Parameter:
//   try Tag::Gradients somewhere, and read what the Backend says.
#pragma once

#include "tensor/ledger.h"

namespace lk::exercise {

// ---- your code ----
inline constexpr Tag kBase = Tag::Workspace;      // W (N,K), frozen
inline constexpr Tag kFactor = Tag::Workspace;    // A (R,K) and B (N,R), which train
inline constexpr Tag kOutput = Tag::Workspace;    // y (T,N)
inline constexpr Tag kThin = Tag::Workspace;      // s = drop(x) Aᵀ (T,R), which dB reads
inline constexpr Tag kDropped = Tag::Workspace;   // drop(x) (T,K), made again when dA needs it
inline constexpr Tag kThinGrad = Tag::Workspace;  // ds = scale dy B (T,R), in backward
// ---- end ----

}  // namespace lk::exercise
