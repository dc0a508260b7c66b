#include "autograd/ops.h"
#include "autograd/work.h"

namespace lk {

// x = table[ids]. The table is frozen and ids have no gradient, so there is no node: x is a
// constant.
Var embedding(Tape& tape, const Weight& table, const Tensor& ids, std::int64_t margin) {
  auto [T] = ids.dims<1>("embedding: ids (T)");
  check(table.defined() && table.shape().rank() == 2, "embedding: table (V,C) is missing");
  Tensor x = tape.activation(table.dtype(), {T, table.shape()[1]}, margin);
  tape.backend().embedding_forward(x, table, ids);
  return tape.constant(std::move(x));
}

namespace {

// dx[rows] = dy; every other row of dx is zero.
struct GatherRowsNode : Node {
  Edge x;
  Tensor rows;
  GatherRowsNode(Edge x, const Tensor& rows) : x(x), rows(rows) {}
  const char* name() const override { return "gather_rows"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (Sink dx = tape.sink(x)) tape.backend().scatter_rows(dx.tensor, dx.mode, dy, rows);
  }
};

}  // namespace

// y = x[rows]
Var gather_rows(Tape& tape, const Var& x, const Tensor& rows) {
  auto [T, C] = x.dims<2>("gather_rows: x (T,C)");
  auto [n] = rows.dims<1>("gather_rows: rows (n)");
  check(n <= T, "gather_rows: ", n, " distinct rows of ", T);
  Tensor y = tape.activation(x.dtype(), {n, C});
  tape.backend().gather_rows(y, x.value(), rows);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<GatherRowsNode>(std::move(y), x, rows);
}

Work work::embedding_forward(const Tensor& y, const Weight&, const Tensor&) {
  return {OpFamily::Embedding, 0, 2 * size(y)};
}

Work work::gather_rows(const Tensor& y, const Tensor&, const Tensor&) {
  return {OpFamily::Embedding, 0, 2 * size(y)};
}

Work work::put_rows(const Tensor&, const Tensor& x, const Tensor&) {
  return {OpFamily::Other, 0, 2 * size(x)};
}

// Write also zeroes the rows of dx that get nothing from dy.
Work work::scatter_rows(const Tensor& dx, GradMode mode, const Tensor& dy, const Tensor&) {
  const double out = mode == GradMode::Add ? 2 * size(dy) : size(dx);
  return {OpFamily::Embedding, 0, size(dy) + out};
}

}  // namespace lk
