// An op of your own, and what the check says of a wrong derivative. The op is that of
// docs/how-to-add-an-op.md: y = alpha * sum of x^2. Its derivative is written four times here, once
// right and three times with a mistake that everybody makes.
#include <array>

#include "autograd/gradcheck.h"
#include "cpu/cpu_backend.h"
#include "learn.h"
#include "tensor/sample.h"

using namespace lk;

namespace {

enum class Mistake { None, ForgetsDy, ForgetsTwo, Overwrites };

// dx = 2 alpha x, times the gradient dy (1) of the result.
struct PenaltyNode : Node {
  Var x;  // a Var, not an Edge: backward reads the value
  double alpha;
  Mistake mistake;
  PenaltyNode(const Var& input, double factor, Mistake m) : x(input), alpha(factor), mistake(m) {}
  const char* name() const override { return "penalty"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Sink dx = tape.sink(x);
    if (!dx) return;  // nobody wants it: nothing is computed
    const Tensor upstream = mistake == Mistake::ForgetsDy ? Tensor() : dy;
    const double factor = mistake == Mistake::ForgetsTwo ? alpha : 2 * alpha;
    const GradMode mode = mistake == Mistake::Overwrites ? GradMode::Write : dx.mode;
    tape.backend().scale(dx.tensor, mode, factor, upstream, x.value());
  }
};

// y (1) = alpha sum x^2, x F64 of any shape.
Var penalty(Tape& tape, const Var& x, double alpha, Mistake mistake = Mistake::None) {
  Tensor y = tape.activation(DType::F64, {1});
  tape.backend().sum_squares(y, std::array{x.value()});
  tape.backend().scale(y, GradMode::Write, alpha, {}, y);
  if (!tape.wants(x)) return tape.constant(y);
  return tape.record<PenaltyNode>(y, x, alpha, mistake);
}

}  // namespace

int main() {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *cpu;
  const Tensor x = tensor_from(backend, DType::F64, {2, 3}, {1, -2, 0.5, 3, 0, -1});

  Tape tape(backend);
  Var leaf = tape.leaf(x);
  Var y = penalty(tape, leaf, 0.5);
  tape.backward(y);
  learn::print("x", x), learn::print("y", y.value()), learn::print("dy/dx", tape.gradient(leaf));
  learn::claim(to_host_f64(tape.gradient(leaf)) == to_host_f64(x), "the slope of x^2 / 2 is x");

  std::printf("\nThe check moves each element of x by 1e-5 both ways and compares slopes.\n");
  const std::array<std::pair<Mistake, const char*>, 4> versions{
      {{Mistake::None, "right"},
       {Mistake::ForgetsDy, "forgets dy"},
       {Mistake::ForgetsTwo, "forgets the 2"},
       {Mistake::Overwrites, "ignores dx.mode"}}};
  for (auto [mistake, name] : versions) {
    const GradcheckResult r = gradcheck(
        backend,
        [&, m = mistake](Tape& t, const std::vector<Var>& in) { return penalty(t, in[0], 0.3, m); },
        {x});
    std::printf("%-16s %s\n", name, r.ok ? "passes" : r.message.c_str());
    learn::claim(r.ok == (mistake == Mistake::None), r.ok ? "it may pass" : "it must fail");
    // A single use of x can't show the last mistake: only two uses need an addition.
    if (mistake == Mistake::Overwrites)
      learn::claim(r.message.starts_with("twice"), "only calling the op twice shows this one");
  }
  return learn::broken_claims > 0;
}
