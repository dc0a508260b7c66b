// The trainable product (it alone has alpha) takes no frozen weight.
// expect: no known conversion for argument 3 from 'lk::Weight' to 'lk::Parameter&'
#include "autograd/ops.h"

namespace lk {

Var f(Tape& tape, const Var& x, Weight& w) { return linear(tape, x, w, 2.0); }

}  // namespace lk
