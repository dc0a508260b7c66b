// No product over tokens writes into a frozen weight.
// expect: cannot convert 'lk::Weight' to 'const lk::Tensor&'
#include "tensor/backend.h"

namespace lk {

void f(Backend& backend, Weight& w, const Tensor& t) {
  backend.weight_gradient(w, GradMode::Write, 1.0, t, t);
}

}  // namespace lk
