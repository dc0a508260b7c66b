#include "autograd/ops.h"
#include "autograd/work.h"

namespace lk {
namespace {

// The transpose of a rotation is its inverse: dx is dy rotated back. Saves nothing of x.
struct RopeNode : Node {
  Edge x;
  Tensor table, positions;
  int head_dim;
  RopeNode(Edge x, const Tensor& table, const Tensor& positions, int head_dim)
      : x(x), table(table), positions(positions), head_dim(head_dim) {}
  const char* name() const override { return "rope"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x))
      tape.backend().rope(dx.tensor, dx.mode, dy, table, positions, head_dim, /*inverse=*/true);
  }
};

}  // namespace

// y = x with the pairs (i, i + D/2) of every head rotated by the angle of their position
Var rope(Tape& tape, const Var& x, const Tensor& table, const Tensor& positions, int head_dim) {
  auto [T, width] = x.dims<2>("rope: x (T,heads*D)");
  auto [P, D] = table.dims<2>("rope: table (P,D)");
  positions.expect({T}, "rope: positions (T)");
  check(D == head_dim && D > 0 && D % 2 == 0 && width % D == 0, "rope: x has ", width,
        " columns, head_dim is ", head_dim, ", table ", table.shape());
  Tensor y = tape.activation(x.dtype(), {T, width});
  tape.backend().rope(y, GradMode::Write, x.value(), table, positions, head_dim, /*inverse=*/false);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<RopeNode>(std::move(y), x, table, positions, head_dim);
}

Work work::rope(const Tensor& y, GradMode mode, const Tensor& x, const Tensor&, const Tensor&, int,
                bool) {
  return {OpFamily::Rope, 0, size(x) + written(y, mode)};
}

}  // namespace lk
