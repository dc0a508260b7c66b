// A frozen weight is no Var.
// expect: no known conversion for argument 1 from 'const lk::Weight' to 'lk::Tensor'
#include "autograd/ops.h"

namespace lk {

Var f(const Weight& w) { return Var(w); }

}  // namespace lk
