// The worked example of docs/how-to-add-an-op.md: an op that lives outside the engine.
#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "cpu_ops.h"

using namespace lk;
using namespace lk::test;

namespace {

// region: the node
// d(alpha sum x^2)/dx = 2 alpha x, times the gradient dy (1) of the penalty.
struct PenaltyNode : Node {
  Var x;
  double alpha;
  PenaltyNode(const Var& x, double alpha) : x(x), alpha(alpha) {}
  const char* name() const override { return "penalty"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().scale(dx.tensor, dx.mode, 2 * alpha, dy, x.value());
  }
};
// endregion

// region: the op
// y (1) = alpha sum x^2, x of any shape, F32 or F64.
Var penalty(Tape& tape, const Var& x, double alpha) {
  Tensor y = tape.activation(x.dtype(), {1});
  tape.backend().sum_squares(y, std::array{x.value()});
  tape.backend().scale(y, GradMode::Write, alpha, {}, y);
  if (!tape.wants(x)) return tape.constant(y);
  return tape.record<PenaltyNode>(y, x, alpha);
}
// endregion

}  // namespace

TEST_CASE("penalty: the derivative is that of the formula") {
  for (Shape shape : {Shape{5, 7}, Shape{1, 1}, Shape{3}}) {
    // region: the check
    GradcheckResult r =
        gradcheck(reference(),
                  [](Tape& tape, const std::vector<Var>& in) { return penalty(tape, in[0], 0.3); },
                  {random_tensor(reference(), DType::F64, shape, 1)});
    CHECK_MESSAGE(r.ok, r.message);
    // endregion
  }
}

TEST_CASE("penalty: at home on a tape with the engine's ops and parameters") {
  Parameter w("w", random_tensor(reference(), DType::F64, {4, 7}, 2), DType::F64);
  Weight head("head", random_tensor(reference(), DType::F64, {6, 4}, 3));
  Tensor targets = to_device(reference(), Tag::Workspace, std::vector<std::int32_t>{0, 5, 3});
  GradcheckResult r = gradcheck(reference(),
                                [&](Tape& tape, const std::vector<Var>& in) {
                                  Var h = linear(tape, in[0], w);
                                  return add(tape, head_loss(tape, h, head, targets, 0.5, 2),
                                             penalty(tape, h, 0.01));
                                },
                                {random_tensor(reference(), DType::F64, {3, 7}, 4)}, {&w});
  CHECK_MESSAGE(r.ok, r.message);

  Tensor x = random_tensor(fast(), DType::F32, {9, 8}, 5);
  Tape tape(fast());
  Var leaf = tape.leaf(x);
  tape.backward(penalty(tape, leaf, 0.5));
  CHECK(to_host_f64(tape.gradient(leaf)) == to_host_f64(x));  // 0.5 sum x^2: exact
}
