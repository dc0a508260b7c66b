// 2. Break `sink`, and say which check sees it.
//
// A backward asks tape.sink(x) where the gradient of x goes. The answer has three parts: whether
// anybody wants it, a buffer, and Write or Add. Break each part, and say which check notices. The
// op under test is y = 2 a + 3 b (tests/02_sink.cpp); its backward asks once for a, with b as
// `other`, and once for b, with a as `other`.
//
// gradcheck differentiates in several ways and names the worst one:
//   All     both inputs want gradients
//   Twice   the op runs twice on one tape, y + y'
//   Alone   only one input wants a gradient
// A fault that no slope shows is seen by the Ledger alone: it counts the buffers that were
// allocated.
//
// Hints
// - A Sink is {tensor, mode}; an empty one, {}, says that nobody wants it.
// - `x.needs_grad()` says whether somebody does. x.dtype() and x.shape() are those of its value.
// - Only one of the four faults changes no number.
#pragma once

#include "autograd/tape.h"

namespace lk::exercise {

enum class Check { Nothing, All, Twice, Alone, Ledger };

// ---- your code ----
// Always says Write, never Add.
inline Sink overwrites(Tape& tape, const Edge& x, const Edge& /*other*/) { return tape.sink(x); }
// Gives a new buffer to those who want none.
inline Sink gives_to_all(Tape& tape, const Edge& x, const Edge& /*other*/) { return tape.sink(x); }
// Gives nothing to anybody.
inline Sink gives_to_none(Tape& tape, const Edge& x, const Edge& /*other*/) { return tape.sink(x); }
// Gives only where `other` wants a gradient too.
inline Sink gives_to_pairs(Tape& tape, const Edge& x, const Edge& /*other*/) {
  return tape.sink(x);
}

inline constexpr Check kSeesOverwrites = Check::Nothing;
inline constexpr Check kSeesGivesToAll = Check::Nothing;
inline constexpr Check kSeesGivesToNone = Check::Nothing;
inline constexpr Check kSeesGivesToPairs = Check::Nothing;
// ---- end ----

}  // namespace lk::exercise
