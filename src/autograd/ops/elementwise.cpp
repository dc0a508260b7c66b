#include "autograd/ops.h"
#include "autograd/work.h"

namespace lk {
namespace {

// da = dy, db = dy: one buffer, shared until a later contribution is added to it.
struct AddNode : Node {
  Edge a, b;
  AddNode(Edge a, Edge b) : a(a), b(b) {}
  const char* name() const override { return "add"; }
  void backward(Tape& tape, const Tensor& dy) override {
    tape.pass(a, dy);
    tape.pass(b, dy);
  }
};

}  // namespace

// y = a + b
Var add(Tape& tape, const Var& a, const Var& b, Output output) {
  check(a.value().defined(), "add: a has no value");
  b.value().expect(a.value().shape(), "add: b like a");
  Tensor y = tape.activation(a.dtype(), a.value().shape(), a.value().margin());
  if (output == Output::Read) tape.backend().add(y, a.value(), b.value());
  if (!tape.wants(a, b)) return tape.constant(std::move(y));
  return tape.record<AddNode>(std::move(y), a, b);
}

namespace {

// dx = dy * keep / (1 - p): the mask is drawn again from the key, so nothing is saved.
struct DropoutNode : Node {
  Edge x;
  float p;
  RandomKey key;
  DropoutNode(Edge x, float p, const RandomKey& key) : x(x), p(p), key(key) {}
  const char* name() const override { return "dropout"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().dropout(dx.tensor, dx.mode, dy, p, key);
  }
};

}  // namespace

// y = x * keep / (1 - p)
Var dropout(Tape& tape, const Var& x, float p, const RandomKey& key) {
  check(x.value().defined(), "dropout: x has no value");
  check(p >= 0 && p < 1, "dropout: p = ", p, ", not in [0, 1)");
  if (p == 0) return x;
  Tensor y = tape.activation(x.dtype(), x.value().shape());
  tape.backend().dropout(y, GradMode::Write, x.value(), p, key);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<DropoutNode>(std::move(y), x, p, key);
}

Work work::fill(const Tensor& x, double) { return {OpFamily::Other, 0, size(x)}; }

Work work::uniform(const Tensor& x, float, const RandomKey&) {
  return {OpFamily::Other, 0, size(x)};
}

Work work::copy(const Tensor& y, const Tensor& x) { return {OpFamily::Other, 0, sizes(x, y)}; }

Work work::add(const Tensor& y, const Tensor& a, const Tensor& b) {
  return {OpFamily::Other, 0, sizes(y, a, b)};
}

Work work::scale(const Tensor& y, GradMode mode, double, const Tensor&, const Tensor& x) {
  return {OpFamily::Other, 0, size(x) + written(y, mode)};
}

Work work::add_bias(const Tensor& y, const Weight&) { return {OpFamily::Other, 0, 2 * size(y)}; }

Work work::dropout(const Tensor& y, GradMode mode, const Tensor& x, float, const RandomKey&) {
  return {OpFamily::Other, 0, size(x) + written(y, mode)};
}

}  // namespace lk
