// Nobody but a Parameter can ask for a gradient.
// expect: is private within this context
#include "autograd/parameter.h"

namespace lk {

Tensor f(Backend& backend) { return backend.empty_gradient(PassKey<Parameter>{}, DType::F32, {1}); }

}  // namespace lk
