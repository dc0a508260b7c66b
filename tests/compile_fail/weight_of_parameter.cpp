// A Parameter does not pass for a frozen weight.
// expect: invalid initialization of reference of type 'const lk::Weight&'
#include "autograd/ops.h"

namespace lk {

Var f(Tape& tape, const Var& x, Parameter& p) { return rmsnorm(tape, x, p, 1e-5); }

}  // namespace lk
