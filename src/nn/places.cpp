#include "nn/places.h"

#include "autograd/trained.h"

namespace lk {

// What is frozen is scaled where it stands; what trains needs a node for it.
Var embedding(Tape& tape, const Weight& table, Parameter* trained, const Tensor& ids, double scale,
              std::int64_t margin) {
  if (trained) {
    const Var x = embedding(tape, *trained, ids, margin);
    return scale == 1 ? x : scaled(tape, x, scale);
  }
  Var x = embedding(tape, table, ids, margin);
  if (scale != 1) tape.backend().scale(x.value(), GradMode::Write, scale, {}, x.value());
  return x;
}

Var head_loss(Tape& tape, const Var& x, const Weight& head, Parameter* trained,
              const Tensor& targets, const LossScale& scale, std::int64_t chunk_rows) {
  return trained ? head_loss(tape, x, *trained, targets, scale, chunk_rows)
                 : head_loss(tape, x, head, targets, scale, chunk_rows);
}

Var linear(Tape& tape, const Var& x, const Weight& w, Parameter* trained) {
  return trained ? linear(tape, x, *trained, nullptr) : linear(tape, x, w);
}

}  // namespace lk
