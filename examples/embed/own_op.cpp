// An op of one's own, outside of the engine: the worked example of docs/how-to-add-an-op.md. Checks
// its derivative, then runs it in F32 and BF16 on the CPU and, if there is one, on a GPU.
#include <lorikeet/lorikeet.h>

#include <array>
#include <cmath>
#include <cstdio>

using namespace lk;

namespace {

// region: the node
// d(alpha sum x^2)/dx = 2 alpha x, times the gradient dy (1) of the penalty.
struct PenaltyNode : Node {
  Var x;
  double alpha;
  PenaltyNode(const Var& input, double factor) : x(input), alpha(factor) {}
  const char* name() const override { return "penalty"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().scale(dx.tensor, dx.mode, 2 * alpha, dy, x.value());
  }
};
// endregion

// region: the op
// y (1) = alpha sum x^2, x of any shape. Sums are F32 for BF16 and F32, else F64.
Var penalty(Tape& tape, const Var& x, double alpha) {
  Tensor y = tape.activation(x.dtype() == DType::F64 ? DType::F64 : DType::F32, {1});
  tape.backend().sum_squares(y, std::array{x.value()});
  tape.backend().scale(y, GradMode::Write, alpha, {}, y);
  if (!tape.wants(x)) return tape.constant(y);
  return tape.record<PenaltyNode>(y, x, alpha);
}
// endregion

int failures = 0;
void expect(bool ok, const std::string& what) {
  if (!ok) ++failures;
  std::printf("%s: %s\n", ok ? "right" : "WRONG", what.c_str());
}

void check_derivative(const Shape& shape) {
  // region: the check
  auto reference = make_cpu_backend(CpuMode::Reference);
  GradcheckResult r = gradcheck(
      *reference, [](Tape& tape, const std::vector<Var>& in) { return penalty(tape, in[0], 0.3); },
      {random_tensor(*reference, DType::F64, shape, 1)});
  expect(r.ok, r.ok ? "the derivative" : r.message);
  // endregion
}

// 0.5 sum x^2 has the gradient x, exactly. The sum has 72 terms, each rounded to F32.
void check_device(const std::string& name, DType dtype) {
  auto device = open_device(name);
  Tensor x = random_tensor(*device, dtype, {9, 8}, 5);
  Tape tape(*device);
  Var leaf = tape.leaf(x);
  Var y = penalty(tape, leaf, 0.5);
  tape.backward(y);
  double sum = 0;
  for (double v : to_host_f64(x)) sum += 0.5 * v * v;
  const std::string where = concat(dtype_name(dtype), " on ", name);
  expect(std::abs(to_host_f64(y.value())[0] - sum) <= 72 * 0x1p-24 * sum, "the value, " + where);
  expect(to_host_f64(tape.gradient(leaf)) == to_host_f64(x), "the gradient, " + where);
}

}  // namespace

int main() {
  for (const Shape& shape : {Shape{5, 7}, Shape{1, 1}, Shape{3}}) check_derivative(shape);
  for (DType dtype : {DType::F32, DType::BF16}) {
    check_device("cpu", dtype);
    if (n_gpus() > 0) check_device("cuda:0", dtype);
  }
  return failures > 0;
}
