#include <algorithm>

#include "autograd/attended.h"
#include "autograd/ops.h"
#include "autograd/ops/qkv.h"
#include "autograd/work.h"

namespace lk {
namespace {

// With p = softmax(scale q kᵀ), dp = dy vᵀ, delta = rowsum(dy * o): ds = p (dp - delta) scale,
// dq = ds k, dk = dsᵀ q, dv = pᵀ dy. Saves q, k, v, o and lse (H,T); p is recomputed tile by tile.
struct AttentionNode : Node {
  Var q, k, v;
  AttentionShape shape;
  Segments segments;
  Tensor o, lse;
  AttentionNode(const Var& q, const Var& k, const Var& v, const AttentionShape& shape,
                const Segments& segments, Tensor o, Tensor lse)
      : q(q), k(k), v(v), shape(shape), segments(segments), o(std::move(o)), lse(std::move(lse)) {}
  const char* name() const override { return "attention"; }
  void backward(Tape& tape, const Tensor& dy) override {
    // The kernel makes dq, dk and dv at once and always writes: pass the buffers on by sharing.
    Backend& backend = tape.backend();
    auto like = [&](const Var& x) {
      return backend.empty(Tag::Backward, x.dtype(), x.value().shape());
    };
    Tensor dq = like(q), dk = like(k), dv = like(v);
    backend.attention_backward(dq, dk, dv, dy, q.value(), k.value(), v.value(), o, lse, shape,
                               segments);
    tape.pass(q, dq);
    tape.pass(k, dk);
    tape.pass(v, dv);
  }
};

}  // namespace

// o = softmax(scale q kᵀ, causal inside each segment) v, for each head
Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const AttentionShape& shape,
              const Segments& segments) {
  const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
  check(H > 0 && G > 0 && D > 0 && H % G == 0 && shape.window >= 0, "attention: ", H, " heads of ",
        D, ", ", G, " key/value heads, window ", shape.window);
  const std::int64_t T = q.dims<2>("attention: q (T,H*D)")[0];
  q.value().expect({T, H * D}, "attention: q (T,H*D)");
  k.value().expect({T, G * D}, "attention: k (T,G*D)");
  v.value().expect({T, G * D}, "attention: v (T,G*D)");
  check(segments.total() == T, "attention: segments hold ", segments.total(), " tokens, q has ", T);
  auto [o, lse] = attend(tape, q.value(), k.value(), v.value(), shape, segments);
  if (!tape.wants(q, k, v)) return tape.constant(std::move(o));
  return tape.record<AttentionNode>(o, q, k, v, shape, segments, o, std::move(lse));
}

namespace {

// Attention's backward into one buffer, with dq and dk rotated back in place. Saves the rotated
// qkv, o and lse (H,T).
struct QkvAttentionNode : Node {
  Var qkv;
  Tensor table, positions, o, lse;
  AttentionShape shape;
  Segments segments;
  QkvAttentionNode(const Var& qkv, const Tensor& table, const Tensor& positions, Tensor o,
                   Tensor lse, const AttentionShape& shape, const Segments& segments)
      : qkv(qkv),
        table(table),
        positions(positions),
        o(std::move(o)),
        lse(std::move(lse)),
        shape(shape),
        segments(segments) {}
  const char* name() const override { return "qkv_attention"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const Tensor& value = qkv.value();
    Tensor dqkv =
        backend.empty_with_margin(Tag::Backward, value.dtype(), value.shape(), value.margin());
    Qkv in(value, shape), d(dqkv, shape);
    const Rotation rotation{table, positions};
    backend.attention_backward(d.q, d.k, d.v, dy, in.q, in.k, in.v, o, lse, shape, segments,
                               table.defined() ? &rotation : nullptr);
    tape.pass(qkv, dqkv);
  }
};

}  // namespace

// o = attention(rope(q), rope(k), v)
Var qkv_attention(Tape& tape, const Var& qkv, const Tensor& rope_table, const Tensor& positions,
                  const AttentionShape& shape, const Segments& segments, std::int64_t margin) {
  const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
  const std::int64_t T = qkv.dims<2>("qkv_attention: qkv (T,(H+2G)*D)")[0];
  qkv.value().expect({T, (H + 2 * G) * D}, "qkv_attention: qkv (T,(H+2G)*D)");
  check(segments.total() == T, "qkv_attention: segments hold ", segments.total(),
        " tokens, qkv has ", T);
  Backend& backend = tape.backend();
  if (rope_table.defined()) {
    Tensor turned = qkv.value().slice_cols(0, (H + G) * D);
    backend.rope(turned, GradMode::Write, turned, rope_table, positions, shape.head_dim, false);
  }
  Qkv in(qkv.value(), shape);
  auto [o, lse] = attend(tape, in.q, in.k, in.v, shape, segments, margin);
  if (!tape.wants(qkv)) return tape.constant(std::move(o));
  return tape.record<QkvAttentionNode>(o, qkv, rope_table, positions, o, std::move(lse), shape,
                                       segments);
}

namespace {

// FLOPs of one of attention's products: each query with all keys up to its own position.
double attention_product(const AttentionShape& shape, const Segments& q, const KeyRows& k) {
  double pairs = 0;
  for (std::size_t i = 0; i + 1 < q.host.size(); ++i) {
    const double queries = q.host[i + 1] - q.host[i], keys = k.ends[i] - k.begins[i];
    // Query j of the document sees keys - queries + j + 1 keys, or the window if that is less.
    const double all = queries * (keys - queries) + queries * (queries + 1) / 2;
    pairs += shape.window > 0 ? std::min(all, queries * shape.window) : all;
  }
  return 2 * pairs * shape.n_heads * shape.head_dim;
}

}  // namespace

Work work::attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const AttentionShape& shape, const Segments& q_seg,
                             const KeyRows& k_rows) {
  return {OpFamily::AttentionForward, 2 * attention_product(shape, q_seg, k_rows),
          sizes(o, lse, q, k, v)};
}

Work work::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                              const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& o, const Tensor& lse, const AttentionShape& shape,
                              const Segments& seg, const Rotation*) {
  return {OpFamily::AttentionBackward, 5 * attention_product(shape, seg, seg),
          sizes(dq, dk, dv, dout, q, k, v, o, lse)};
}

}  // namespace lk
