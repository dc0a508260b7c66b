// A frozen weight does not become a Parameter.
// expect: no known conversion for argument 2 from 'const lk::Weight' to 'lk::Tensor'
#include "autograd/ops.h"

namespace lk {

Parameter f(const Weight& w) { return Parameter("p", w, DType::F32); }

}  // namespace lk
