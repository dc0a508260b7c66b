// A frozen weight is no leaf.
// expect: cannot convert 'const lk::Weight' to 'lk::Tensor'
#include "autograd/ops.h"

namespace lk {

Var f(Tape& tape, const Weight& w) { return tape.leaf(w); }

}  // namespace lk
