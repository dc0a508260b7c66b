// The tape gives no gradient buffer for a frozen weight.
// expect: cannot convert 'const lk::Weight' to 'const lk::Edge&'
#include "autograd/ops.h"

namespace lk {

Sink f(Tape& tape, const Weight& w) { return tape.sink(w); }

}  // namespace lk
