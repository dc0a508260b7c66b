// A Parameter does not pass for a frozen weight.
// expect: cannot convert 'lk::Parameter' to 'const lk::Weight&'
#include "autograd/ops.h"

namespace lk {

void f(Backend& backend, const Tensor& y, const Tensor& x, Parameter& p) {
  backend.linear_forward(y, x, p);
}

}  // namespace lk
