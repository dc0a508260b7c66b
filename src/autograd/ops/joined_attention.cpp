#include "autograd/attended.h"
#include "autograd/joined.h"
#include "autograd/ops/by_head.h"
#include "autograd/ops/qkv.h"

namespace lk {
namespace {

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
    const Tensor& value = qkv.value();
    const Tensor dqkv =
        backend.empty_with_margin(Tag::Backward, value.dtype(), value.shape(), value.margin());
    const Qkv in(value, shape), d(dqkv, shape);
    Tensor dq = backend.empty(Tag::Backward, value.dtype(), q.value.shape()),
           dk = backend.empty(Tag::Backward, value.dtype(), k.value.shape());
    const Rotation rotation{table, positions};
    backend.attention_backward(dq, dk, d.v, dy, q.value, k.value, in.v, o, lse, shape, segments,
                               table.defined() ? &rotation : nullptr);
    through_norm(d.q, dq, in.q, q);
    through_norm(d.k, dk, in.k, k);
    tape.pass(qkv, dqkv);
  }

 private:
  // dx, given the gradient of what the norm made of x.
  void through_norm(const Tensor& dx, const Tensor& dy, const Tensor& x,
                    const Normed& normed) const {
    Backend& backend = dx.backend();
    const std::int64_t D = shape.head_dim;
    const Tensor rows = dense(x), made = backend.empty(Tag::Workspace, x.dtype(), x.shape());
    backend.rmsnorm_backward(by_head(made, D), GradMode::Write, by_head(dy, D), by_head(rows, D),
                             normed.gain, normed.rstd);
    backend.copy(dx, made);
  }
};

}  // namespace

// o = attention(rope(rmsnorm(q)), rope(rmsnorm(k)), v)
Var head_normed_attention(Tape& tape, const Var& qkv, const HeadNorms& norms,
                          const Tensor& rope_table, const Tensor& positions,
                          const AttentionShape& shape, const Segments& segments,
                          std::int64_t margin) {
  const std::int64_t D = shape.head_dim, T = qkv.dims<2>("head_normed_attention: qkv")[0];
  qkv.value().expect({T, (shape.n_heads + 2 * std::int64_t{shape.n_kv_heads}) * D},
                     "head_normed_attention: qkv (T,(H+2G)*D)");
  norms.q.expect({D}, "head_normed_attention: q's gain (D)");
  norms.k.expect({D}, "head_normed_attention: k's gain (D)");
  check(segments.total() == T, "head_normed_attention: segments hold ", segments.total(),
        " tokens, qkv has ", T);
  Backend& backend = tape.backend();
  const DType stat = stat_dtype(qkv.dtype());
  const Qkv in(qkv.value(), shape);
  const auto normed = [&](const Tensor& x, const Weight& gain) {
    HeadNormedAttentionNode::Normed n{tape.activation(x.dtype(), x.shape()),
                                      tape.activation(stat, {T * (x.cols() / D)}), gain};
    backend.rmsnorm_forward(by_head(n.value, D), n.rstd, by_head(dense(x), D), gain, norms.eps);
    if (rope_table.defined())
      backend.rope(n.value, GradMode::Write, n.value, rope_table, positions, shape.head_dim, false);
    return n;
  };
  auto q = normed(in.q, norms.q), k = normed(in.k, norms.k);
  auto [o, lse] = attend(tape, q.value, k.value, in.v, shape, segments, margin);
  if (!tape.wants(qkv)) return tape.constant(std::move(o));
  return tape.record<HeadNormedAttentionNode>(o, qkv, std::move(q), std::move(k), rope_table,
                                              positions, o, std::move(lse), shape, segments);
}

}  // namespace lk
