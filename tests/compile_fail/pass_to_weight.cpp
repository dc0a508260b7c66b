// No gradient is passed on to a frozen weight.
// expect: cannot convert 'const lk::Weight' to 'const lk::Edge&'
#include "autograd/ops.h"

namespace lk {

void f(Tape& tape, const Weight& w, const Tensor& dy) { tape.pass(w, dy); }

}  // namespace lk
