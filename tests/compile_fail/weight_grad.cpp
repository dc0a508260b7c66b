// A frozen weight has no gradient.
// expect: 'const class lk::Weight' has no member named 'grad'
#include "autograd/ops.h"

namespace lk {

Tensor f(const Weight& w) { return w.grad(); }

}  // namespace lk
