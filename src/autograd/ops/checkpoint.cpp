#include "autograd/checkpoint.h"

#include <optional>

#include "autograd/attended.h"

namespace lk {

std::size_t Offloads::send(const Tensor& x) {
  slots_.push_back({backend_.offload(x), x, x.dtype(), x.shape(), x.margin()});
  return slots_.size() - 1;
}

void Offloads::finish_checkpoint() {
  for (std::size_t i = newest_; i < slots_.size(); ++i) {
    slots_[i].copy->sent();
    slots_[i].on_device = Tensor();
  }
}

void Offloads::prefetch(Range range) {
  for (std::size_t i = range.begin; i < range.end; ++i) {
    Slot& s = slots_.at(i);
    if (s.on_device || !s.copy) continue;
    s.on_device = backend_.empty_with_margin(Tag::Activations, s.dtype, s.shape, s.margin);
    s.copy->fetch(s.on_device);
  }
}

Tensor Offloads::take(std::size_t i) {
  prefetch({i, i + 1});
  Slot& s = slots_[i];
  check(s.copy != nullptr, "offload: number ", i, " was taken before");
  s.copy->arrived();
  s.copy.reset();
  return std::move(s.on_device);
}

namespace {

// dx and the gradients of f's parameters come from f's own nodes, which backward records. Saves x,
// or its number in `offloads`, and attention's outputs in `kept` if that is not null.
struct CheckpointNode : Node {
  Edge x;
  Tensor value;  // undefined if it was sent to the host
  Recomputed f;
  std::shared_ptr<Offloads> offloads;
  std::optional<std::size_t> sent;  // x's number
  Offloads::Range previous;         // of the checkpoint that backward needs next
  std::unique_ptr<KeptAttention> kept;
  CheckpointNode(const Var& x_in, Recomputed f_in, std::shared_ptr<Offloads> offloads_in,
                 std::optional<std::size_t> sent_in, Offloads::Range previous_in,
                 std::unique_ptr<KeptAttention> kept_in)
      : x(x_in),
        f(std::move(f_in)),
        offloads(std::move(offloads_in)),
        sent(sent_in),
        previous(previous_in),
        kept(std::move(kept_in)) {
    if (!sent) value = x_in.value();
  }
  const char* name() const override { return "checkpoint"; }
  void backward(Tape& tape, const Tensor&) override {
    if (sent) value = offloads->take(*sent);
    if (offloads) offloads->prefetch(previous);
    Tape again(tape.backend(), Tape::Mode::Record, kept.get());
    Var in = x.needs_grad() ? again.leaf(std::move(value)) : again.constant(std::move(value));
    const Edge leaf = in, y = f(again, in, Output::Unread);
    in = Var();
    value = Tensor();
    if (!y.needs_grad()) return;
    again.backward(y, tape.take_dy());
    if (!x.needs_grad()) return;
    Tensor dx = again.gradient(leaf);
    if (dx) tape.pass(x, dx);
  }
};

}  // namespace

// y = f(x)
Var checkpoint(Tape& tape, const Var& x, Recomputed f, const CheckpointOptions& options) {
  if (!tape.recording() || !(options.trains || tape.wants(x))) {
    Tape plain(tape.backend(), Tape::Mode::NoGrad);
    return tape.constant(f(plain, x, Output::Read).value());
  }
  Offloads* offloads = options.offloads.get();
  Offloads::Range previous;
  std::optional<std::size_t> sent;
  if (offloads) previous = offloads->begin_checkpoint();
  if (options.offload) sent = offloads->send(x.value());
  std::unique_ptr<KeptAttention> kept;
  if (options.keep_attention)
    kept = std::make_unique<KeptAttention>(options.offload ? offloads : nullptr);
  Tensor y;
  {
    Tape forward(tape.backend(), Tape::Mode::NoGrad, kept.get());
    y = f(forward, forward.constant(x.value()), Output::Read).value();
  }
  if (options.offload) offloads->finish_checkpoint();
  return tape.record<CheckpointNode>(std::move(y), x, std::move(f), options.offloads, sent,
                                     previous, std::move(kept));
}

}  // namespace lk
