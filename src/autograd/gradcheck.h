// gradcheck: is a backward the derivative of its forward? Central differences in F64.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace lk {

struct GradcheckResult {
  bool ok = true;
  std::string message;         // the worst element: way, input, index, both values
  double worst_ratio = 0;      // largest |analytic - numeric| / bound; ok means <= 1
  std::int64_t n_checked = 0;  // derivatives compared, over all ways
};

// Compares the gradients of f with central differences. f maps Vars to a Var of any shape. It is
// called many times and must be a pure function of the inputs and of the parameters' values.
// `inputs` (contiguous) and parameters are F64 on the reference CPU backend; their values are
// changed and restored. A random cotangent u turns the output y into the scalar sum(u * y); every
// element of every input and parameter is moved by +-1e-5, and
//   |analytic - numeric| <= 1e-8 + 1e-6 |numeric|
// must hold in each of these ways:
//   all     every input wants its gradient
//   alone   only one input wants its gradient, the others are constants: finds a gradient that is
//           right only when its neighbours are wanted. With parameters, also without any input
//   twice   y + y' of two calls of f on one tape: the second contribution must be added, and dy,
//           which both calls share, left alone. All numbers are twice as large
// An output that claims to depend on nothing trainable is held to derivatives of zero. Throws Error
// on bad arguments; a wrong gradient is reported, not thrown.
GradcheckResult gradcheck(Backend& backend,
                          const std::function<Var(Tape&, const std::vector<Var>&)>& f,
                          const std::vector<Tensor>& inputs,
                          const std::vector<Parameter*>& parameters = {}, unsigned seed = 1);

}  // namespace lk
