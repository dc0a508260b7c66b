// A vector that trains is a Parameter: no op gives a frozen one a gradient.
// expect: invalid initialization of reference of type 'lk::Parameter&'
#include "autograd/trained.h"

namespace lk {

Var f(Tape& tape, const Var& x, Weight& l) { return scale_columns(tape, x, l); }

}  // namespace lk
