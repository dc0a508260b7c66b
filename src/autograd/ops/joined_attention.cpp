#include "autograd/joined.h"
#include "autograd/ops/by_head.h"

namespace lk {
namespace {

// Where q, k and v lie side by side in qkv.
struct Columns {
  std::int64_t q, k, v;  // ends
  explicit Columns(const AttentionShape& s)
      : q(std::int64_t{s.n_heads} * s.head_dim),
        k(q + std::int64_t{s.n_kv_heads} * s.head_dim),
        v(k + std::int64_t{s.n_kv_heads} * s.head_dim) {}
};

// The columns [begin, end) of x, with adjacent rows, as norms by head need them.
Tensor adjacent(const Tensor& x, std::int64_t begin, std::int64_t end) {
  Tensor copy = x.backend().empty(Tag::Workspace, x.dtype(), {x.rows(), end - begin});
  x.backend().copy(copy, x.slice_cols(begin, end));
  return copy;
}

// Attention's backward, whose dq and dk are rotated back and go through their norms. Saves qkv, the
// normed and rotated q and k, the norms' rstd, o and lse (H,T).
struct HeadNormedAttentionNode : Node {
  struct Normed {
    Tensor value, rstd;  // (T, heads * D), (T * heads)
    Weight gain;
  };
  Var qkv;
  Normed q, k;
  Tensor table, positions, o, lse;
  AttentionShape shape;
  Segments segments;
  HeadNormedAttentionNode(const Var& qkv, Normed q, Normed k, const Tensor& table,
                          const Tensor& positions, Tensor o, Tensor lse,
                          const AttentionShape& shape, const Segments& segments)
      : qkv(qkv),
        q(std::move(q)),
        k(std::move(k)),
        table(table),
        positions(positions),
        o(std::move(o)),
        lse(std::move(lse)),
        shape(shape),
        segments(segments) {}
  const char* name() const override { return "head_normed_attention"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const Columns end(shape);
    const Tensor& value = qkv.value();
    const Tensor dqkv =
        backend.empty_with_margin(Tag::Backward, value.dtype(), value.shape(), value.margin());
    Tensor dq = backend.empty(Tag::Backward, value.dtype(), q.value.shape()),
           dk = backend.empty(Tag::Backward, value.dtype(), k.value.shape());
    const Rotation rotation{table, positions};
    backend.attention_backward(dq, dk, dqkv.slice_cols(end.k, end.v), dy, q.value, k.value,
                               value.slice_cols(end.k, end.v), o, lse, shape, segments,
                               table.defined() ? &rotation : nullptr);
    through_norm(dqkv, 0, end.q, dq, q);
    through_norm(dqkv, end.q, end.k, dk, k);
    tape.pass(qkv, dqkv);
  }

 private:
  // Columns [begin, end) of dqkv, given the gradient of what their norm made.
  void through_norm(const Tensor& dqkv, std::int64_t begin, std::int64_t end, const Tensor& dy,
                    const Normed& normed) const {
    Backend& backend = dqkv.backend();
    const std::int64_t D = shape.head_dim;
    const Tensor x = adjacent(qkv.value(), begin, end),
                 dx = backend.empty(Tag::Workspace, x.dtype(), x.shape());
    backend.rmsnorm_backward(by_head(dx, D), GradMode::Write, by_head(dy, D), by_head(x, D),
                             normed.gain, normed.rstd);
    backend.copy(dqkv.slice_cols(begin, end), dx);
  }
};

}  // namespace

// o = attention(rope(rmsnorm(q)), rope(rmsnorm(k)), v)
Var head_normed_attention(Tape& tape, const Var& qkv, const HeadNorms& norms,
                          const Tensor& rope_table, const Tensor& positions,
                          const AttentionShape& shape, const Segments& segments,
                          std::int64_t margin) {
  const Columns end(shape);
  const std::int64_t D = shape.head_dim, T = qkv.dims<2>("head_normed_attention: qkv")[0];
  qkv.value().expect({T, end.v}, "head_normed_attention: qkv (T,(H+2G)*D)");
  norms.q.expect({D}, "head_normed_attention: q's gain (D)");
  norms.k.expect({D}, "head_normed_attention: k's gain (D)");
  check(segments.total() == T, "head_normed_attention: segments hold ", segments.total(),
        " tokens, qkv has ", T);
  Backend& backend = tape.backend();
  const DType stat = stat_dtype(qkv.dtype());
  const auto normed = [&](std::int64_t first, std::int64_t last, const Weight& gain) {
    HeadNormedAttentionNode::Normed n{tape.activation(qkv.dtype(), {T, last - first}),
                                      tape.activation(stat, {T * ((last - first) / D)}), gain};
    backend.rmsnorm_forward(by_head(n.value, D), n.rstd,
                            by_head(adjacent(qkv.value(), first, last), D), gain, norms.eps);
    if (rope_table.defined())
      backend.rope(n.value, GradMode::Write, n.value, rope_table, positions, shape.head_dim, false);
    return n;
  };
  auto q = normed(0, end.q, norms.q), k = normed(end.q, end.k, norms.k);
  Tensor o = tape.activation(qkv.dtype(), {T, end.q}, margin);
  Tensor lse = tape.activation(stat, {shape.n_heads, T});
  backend.attention_forward(o, lse, q.value, k.value, qkv.value().slice_cols(end.k, end.v), shape,
                            segments, segments);
  if (!tape.wants(qkv)) return tape.constant(std::move(o));
  return tape.record<HeadNormedAttentionNode>(o, qkv, std::move(q), std::move(k), rope_table,
                                              positions, o, std::move(lse), shape, segments);
}

}  // namespace lk
