// The solution of exercises/07_tag.h.
//
// As in src/lora/lora_linear.cpp.
#pragma once

#include "tensor/ledger.h"

namespace lk::exercise {

// ---- your code ----
inline constexpr Tag kBase = Tag::Weights;        // W (N,K), frozen
inline constexpr Tag kFactor = Tag::Params;       // A (R,K) and B (N,R), which train
inline constexpr Tag kOutput = Tag::Activations;  // y (T,N)
inline constexpr Tag kThin = Tag::Activations;    // s = drop(x) Aᵀ (T,R), which dB reads
inline constexpr Tag kDropped = Tag::Workspace;   // drop(x) (T,K), made again when dA needs it
inline constexpr Tag kThinGrad = Tag::Backward;   // ds = scale dy B (T,R), in backward
// ---- end ----

}  // namespace lk::exercise
