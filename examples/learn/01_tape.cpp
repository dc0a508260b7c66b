// A tape: y = x Wᵀ and a loss, forward and backward, in numbers that you can follow by hand. Then
// the same product with a frozen W, and what is missing from memory.
#include "autograd/ops.h"
#include "cpu/cpu_backend.h"
#include "learn.h"
#include "tensor/sample.h"

using namespace lk;
using learn::claim, learn::print, learn::print_live;

namespace {

constexpr auto kTags = {Tag::Weights, Tag::Params, Tag::Activations, Tag::Backward, Tag::Gradients};

// L = 1/2 sum (y - target)^2, so dL/dy = y - target.
Var squared_error(Tape& tape, const Var& y, const std::vector<double>& target) {
  return host_loss(tape, y, [&](std::span<const double> value, std::span<double> dy) {
    double loss = 0;
    for (std::size_t i = 0; i < value.size(); ++i) {
      dy[i] = value[i] - target[i];
      loss += dy[i] * dy[i] / 2;
    }
    return loss;
  });
}

}  // namespace

int main() {
  auto cpu = make_cpu_backend(CpuMode::Reference);
  Backend& backend = *cpu;
  const Tensor x = tensor_from(backend, DType::F64, {3, 2}, {1, 2, 0, 1, 3, 1});
  const std::vector<double> start = {1, -1, 2, 0}, target = {0, 1, 0, 1, 2, 4};

  std::printf("W trains\n");
  {
    Parameter w("w", tensor_from(backend, DType::F64, {2, 2}, start, Tag::Params), DType::F64);
    learn::print_tags("live bytes", kTags);
    print_live("before", backend.ledger(), kTags);
    Tape tape(backend);
    Var y = linear(tape, Var(x), w);  // each of these lines computes a value and records a node
    Var loss = squared_error(tape, y, target);
    print_live("after forward", backend.ledger(), kTags);
    const std::vector<std::string> names = tape.node_names();
    tape.backward(loss);  // runs the nodes from the last to the first, and drops each
    print_live("after backward", backend.ledger(), kTags);

    learn::print_tape(names);
    print("x", x), print("W", w.value()), print("y", y.value()), print("loss", loss.value());
    print("dW", w.grad());
    // dW(n,k) is the sum over rows t of dy(t,n) x(t,k), with dy = y - target = (-1 1; -1 -1; 0 2).
    claim(to_host_f64(loss.value())[0] == 4, "the loss is (1 + 1 + 1 + 1 + 0 + 4) / 2 = 4");
    claim(to_host_f64(w.grad()) == std::vector<double>{-1, -3, 7, 3}, "dW = dyᵀ x, by hand");
  }

  std::printf("\nW is frozen, x wants a gradient\n");
  const Weight w("w", tensor_from(backend, DType::F64, {2, 2}, start, Tag::Weights));
  const std::int64_t products = backend.weight_gradient_matmuls();
  learn::print_tags("live bytes", kTags);
  print_live("before", backend.ledger(), kTags);
  Tape tape(backend);
  Var leaf = tape.leaf(x);
  Var loss = squared_error(tape, linear(tape, leaf, w), target);
  print_live("after forward", backend.ledger(), kTags);
  tape.backward(loss);
  print_live("after backward", backend.ledger(), kTags);
  print("dx", tape.gradient(leaf));
  claim(to_host_f64(tape.gradient(leaf)) == std::vector<double>{1, 1, -3, 1, 4, 0},
        "dx = dy W, by hand");
  claim(backend.ledger()[Tag::Gradients].live_bytes == 0, "there is no memory for a dW");
  claim(backend.weight_gradient_matmuls() == products, "and no product that computes one");
  return learn::broken_claims > 0;
}
