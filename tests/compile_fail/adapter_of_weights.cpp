// A and B of the LoRA layer are not frozen weights.
// expect: invalid initialization of reference of type 'lk::Parameter&'
#include "lora/lora_linear.h"

namespace lk {

Var f(Tape& tape, const Var& x, const Weight& w, Weight& a, Weight& b) {
  return lora_linear(tape, x, w, nullptr, a, b, 1.0, 0.0f, {});
}

}  // namespace lk
