#include "autograd/virtual_tokens.h"

#include "autograd/attended.h"

namespace lk {
namespace {

SharedKeyKernels& kernels_of(Backend& backend) {
  SharedKeyKernels* kernels = backend.shared_key_kernels();
  check(kernels != nullptr, backend.name(), ": no kernels for keys that all tokens share");
  return *kernels;
}

// dp = dy, converted to the parameter's dtype.
struct AsVarNode : Node {
  Parameter& p;
  explicit AsVarNode(Parameter& p) : p(p) {}
  const char* name() const override { return "as_var"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const Sink dp = p.sink();
    if (dp.mode == GradMode::Write) return backend.copy(dp.tensor, dy);
    Tensor same = dy;
    if (dy.dtype() != dp.tensor.dtype()) {
      same = backend.empty(Tag::Backward, dp.tensor.dtype(), dy.shape());
      backend.copy(same, dy);
    }
    backend.add(dp.tensor, dp.tensor, same);
  }
};

}  // namespace

Var as_var(Tape& tape, Parameter& p) {
  if (!tape.wants(p)) return tape.constant(p.compute());
  return tape.record<AsVarNode>(p.compute(), p);
}

namespace {

// dx[:, begin:end] += dy; the other columns of a first contribution are zero.
struct SliceColsNode : Node {
  Edge x;
  std::int64_t begin, end;
  SliceColsNode(Edge x, std::int64_t begin, std::int64_t end) : x(x), begin(begin), end(end) {}
  const char* name() const override { return "slice_cols"; }
  void backward(Tape& tape, const Tensor& dy) override {
    const Sink dx = tape.sink(x);
    if (!dx) return;
    Backend& backend = tape.backend();
    if (dx.mode == GradMode::Write) backend.fill(dx.tensor, 0);
    const Tensor part = dx.tensor.slice_cols(begin, end);
    backend.add(part, part, dy);
  }
};

}  // namespace

// y = x[:, begin:end]
Var slice_cols(Tape& tape, const Var& x, std::int64_t begin, std::int64_t end) {
  auto [T, N] = x.dims<2>("slice_cols: x (T,N)");
  check(0 <= begin && begin < end && end <= N, "slice_cols: columns ", begin, " to ", end, " of ",
        N);
  Tensor y = tape.activation(x.dtype(), {T, end - begin});
  tape.backend().copy(y, x.value().slice_cols(begin, end));
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<SliceColsNode>(std::move(y), x, begin, end);
}

namespace {

// tanh(x) = (exp(x) - exp(-x)) / (exp(x) + exp(-x)) is the attention of x to the keys 1 and -1 with
// the values 1 and -1.
const AttentionShape kTanhShape{1, 1, 1, 1.0f, 0};
SharedKeys tanh_keys(Backend& backend, DType dtype) {
  Tensor signs = backend.empty(Tag::Workspace, dtype, {2, 1});
  backend.fill(signs.slice_rows(0, 1), 1);
  backend.fill(signs.slice_rows(1, 2), -1);
  return {signs, signs};
}

// dx = dy (1 - y^2)
struct TanhNode : Node {
  Var x;
  Tensor y, lse;
  TanhNode(const Var& x, Tensor y, Tensor lse) : x(x), y(std::move(y)), lse(std::move(lse)) {}
  const char* name() const override { return "tanh"; }
  void backward(Tape& tape, const Tensor& dy) override {
    if (!x.needs_grad()) return;
    Backend& backend = tape.backend();
    const Tensor dx = backend.empty(Tag::Backward, y.dtype(), y.shape());
    const Tensor delta = backend.empty(Tag::Backward, lse.dtype(), lse.shape());
    const Shape column{y.numel(), 1};
    kernels_of(backend).shared_keys_backward(
        dx.reshape(column), GradMode::Write, {}, {}, delta, dense(dy).reshape(column),
        dense(x.value()).reshape(column), tanh_keys(backend, y.dtype()), y.reshape(column), lse,
        kTanhShape);
    tape.pass(x, dx);
  }
};

}  // namespace

Var tanh(Tape& tape, const Var& x) {
  auto [T, C] = x.dims<2>("tanh: x (T,C)");
  const Shape column{T * C, 1};
  Tensor y = tape.activation(x.dtype(), {T, C});
  Tensor lse = tape.activation(stat_dtype(x.dtype()), {1, T * C});
  Backend& backend = tape.backend();
  kernels_of(backend).shared_keys_forward(y.reshape(column), lse, GradMode::Write,
                                          dense(x.value()).reshape(column),
                                          tanh_keys(backend, x.dtype()), kTanhShape);
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<TanhNode>(y, x, y, std::move(lse));
}

namespace {

// dp = the sum over documents of dy's rows in their places; dx = dy without these rows.
struct VirtualTokensNode : Node {
  Edge x;
  Tensor rows;
  Parameter& p;
  VirtualTokensNode(Edge x, const Tensor& rows, Parameter& p) : x(x), rows(rows), p(p) {}
  const char* name() const override { return "virtual_tokens"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const std::int64_t C = dy.cols(), n = rows.numel(), documents = n * C / p.numel();
    const Tensor taken = backend.empty(Tag::Backward, dy.dtype(), {n, C});
    backend.gather_rows(taken, dy, rows);
    // The sum over documents as a product with a column of ones.
    const Tensor ones = backend.empty(Tag::Backward, dy.dtype(), {documents, 1});
    backend.fill(ones, 1);
    const Sink dp = p.sink();
    backend.weight_gradient(dp.tensor.reshape({1, p.numel()}), dp.mode, 1, ones,
                            taken.reshape({documents, p.numel()}));
    if (!x.needs_grad()) return;
    Tensor others = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    backend.copy(others, dy);
    backend.fill(taken, 0);
    backend.put_rows(others, taken, rows);
    tape.pass(x, others);
  }
};

}  // namespace

// y = x, y[rows] = p for each document
Var virtual_tokens(Tape& tape, const Var& x, const Tensor& rows, Parameter& p) {
  auto [T, C] = x.dims<2>("virtual_tokens: x (T,C)");
  auto [P, width] = p.value().dims<2>("virtual_tokens: p (P,C)");
  auto [n] = rows.dims<1>("virtual_tokens: rows (documents * P)");
  check(width == C && P > 0 && n % P == 0 && n <= T, "virtual_tokens: ", n, " rows of ", T,
        ", p is ", p.shape(), ", x has ", C, " columns");
  Backend& backend = tape.backend();
  Tensor y = tape.activation(x.dtype(), {T, C}, x.value().margin());
  backend.copy(y, x.value());
  for (std::int64_t first = 0; first < n; first += P)
    backend.put_rows(y, p.compute(), rows.slice_rows(first, first + P));
  if (!tape.wants(x, p)) return tape.constant(std::move(y));
  return tape.record<VirtualTokensNode>(std::move(y), x, rows, p);
}

void add_prefix(const Tensor& o, const Tensor& lse, const Tensor& q, const SharedKeys& prefix,
                const AttentionShape& shape) {
  kernels_of(q.backend()).shared_keys_forward(o, lse, GradMode::Add, q, prefix, shape);
}

namespace {

Tensor like(Backend& backend, const Var& x) {
  return backend.empty(Tag::Backward, x.dtype(), x.value().shape());
}

// With p = exp(scale q kᵀ - lse) and delta = rowsum(dy * o), where lse and o are those of text and
// prefix together, the gradients of the text are attention's own; those of the prefix are added.
struct PrefixAttentionNode : Node {
  Var q, k, v;
  Edge pk, pv;
  SharedKeys prefix;
  AttentionShape shape;
  Segments segments;
  Tensor o, lse;
  PrefixAttentionNode(const Var& q, const Var& k, const Var& v, Edge pk, Edge pv, SharedKeys prefix,
                      const AttentionShape& shape, const Segments& segments, Tensor o, Tensor lse)
      : q(q),
        k(k),
        v(v),
        pk(pk),
        pv(pv),
        prefix(std::move(prefix)),
        shape(shape),
        segments(segments),
        o(std::move(o)),
        lse(std::move(lse)) {}
  const char* name() const override { return "prefix_attention"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Tensor dq, dpk, dpv;
    // In the first block nothing before q, k and v trains: only the prefix wants a gradient.
    if (q.needs_grad() || k.needs_grad() || v.needs_grad()) {
      dq = like(backend, q);
      const Tensor dk = like(backend, k), dv = like(backend, v);
      backend.attention_backward(dq, dk, dv, dy, q.value(), k.value(), v.value(), o, lse, shape,
                                 segments);
      tape.pass(k, dk);
      tape.pass(v, dv);
    }
    if (!q.needs_grad()) dq = {};
    if (pk.needs_grad() || pv.needs_grad()) {
      dpk = backend.empty(Tag::Backward, pk.dtype(), pk.shape());
      dpv = backend.empty(Tag::Backward, pv.dtype(), pv.shape());
    }
    const Tensor delta = backend.empty(Tag::Backward, lse.dtype(), lse.shape());
    kernels_of(backend).shared_keys_backward(dq, GradMode::Add, dpk, dpv, delta, dy, q.value(),
                                             prefix, o, lse, shape);
    if (dq) tape.pass(q, dq);
    if (dpk) tape.pass(pk, dpk);
    if (dpv) tape.pass(pv, dpv);
  }
};

void check_shared_keys(const char* op, const Var& q, const Var& pk, const Var& pv,
                       const AttentionShape& shape) {
  const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
  check(H > 0 && G > 0 && D > 0 && H % G == 0 && shape.window >= 0, op, ": ", H, " heads of ", D,
        ", ", G, " key/value heads, window ", shape.window);
  const std::int64_t T = q.dims<2>(op)[0], n = pk.dims<2>(op)[0];
  check(n > 0, op, ": no keys");
  q.value().expect({T, H * D}, op);
  pk.value().expect({n, G * D}, op);
  pv.value().expect({n, G * D}, op);
}

}  // namespace

// o = softmax(scale q [pk k]ᵀ, causal inside each segment) [pv v], for each head
Var prefix_attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& pk,
                     const Var& pv, const AttentionShape& shape, const Segments& segments,
                     const Tensor& positions, std::int64_t first_token) {
  check_shared_keys("prefix_attention", q, pk, pv, shape);
  const std::int64_t T = q.value().rows(), G = shape.n_kv_heads, D = shape.head_dim;
  k.value().expect({T, G * D}, "prefix_attention: k (T,G*D)");
  v.value().expect({T, G * D}, "prefix_attention: v (T,G*D)");
  check(segments.total() == T, "prefix_attention: segments hold ", segments.total(),
        " tokens, q has ", T);
  if (shape.window > 0) positions.expect({T}, "prefix_attention: positions (T)");
  SharedKeys prefix{pk.value(), pv.value(), positions, first_token};
  auto [o, lse] =
      attend(tape, q.value(), k.value(), v.value(), shape, segments, 0,
             [&](const Attended& a) { add_prefix(a.o, a.lse, q.value(), prefix, shape); });
  if (!tape.wants(q, k, v, pk, pv)) return tape.constant(std::move(o));
  return tape.record<PrefixAttentionNode>(o, q, k, v, pk, pv, std::move(prefix), shape, segments, o,
                                          std::move(lse));
}

namespace {

// With a = softmax(scale q pkᵀ) pv, y = gate a: dgate = sum(dy * a), and the others' gradients are
// gate times those that dy would give a.
struct AdapterAttentionNode : Node {
  Var q;
  Edge pk, pv;
  SharedKeys keys;
  Parameter& gate;
  AttentionShape shape;
  Tensor a, lse;
  AdapterAttentionNode(const Var& q, Edge pk, Edge pv, SharedKeys keys, Parameter& gate,
                       const AttentionShape& shape, Tensor a, Tensor lse)
      : q(q),
        pk(pk),
        pv(pv),
        keys(std::move(keys)),
        gate(gate),
        shape(shape),
        a(std::move(a)),
        lse(std::move(lse)) {}
  const char* name() const override { return "adapter_attention"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Tensor dq, dpk, dpv;
    if (q.needs_grad()) dq = like(backend, q);
    if (pk.needs_grad() || pv.needs_grad()) {
      dpk = backend.empty(Tag::Backward, pk.dtype(), pk.shape());
      dpv = backend.empty(Tag::Backward, pv.dtype(), pv.shape());
    }
    const Tensor delta = backend.empty(Tag::Backward, lse.dtype(), lse.shape());
    kernels_of(backend).shared_keys_backward(dq, GradMode::Write, dpk, dpv, delta, dy, q.value(),
                                             keys, a, lse, shape);
    const Sink dgate = gate.sink();
    backend.sum(dgate.tensor, dgate.mode, 1, delta);
    auto put = [&](const Edge& x, const Tensor& d) {
      if (!d) return;
      if (const Sink dx = tape.sink(x)) backend.scale(dx.tensor, dx.mode, 1, gate.value(), d);
    };
    put(q, dq);
    put(pk, dpk);
    put(pv, dpv);
  }
};

}  // namespace

Var adapter_attention(Tape& tape, const Var& q, const Var& pk, const Var& pv, Parameter& gate,
                      const AttentionShape& shape) {
  check_shared_keys("adapter_attention", q, pk, pv, shape);
  check(shape.window == 0, "adapter_attention: keys without positions have no window");
  gate.value().expect({1}, "adapter_attention: gate (1)");
  Backend& backend = tape.backend();
  SharedKeys keys{pk.value(), pv.value()};
  Tensor a = tape.activation(q.dtype(), q.value().shape());
  Tensor lse = tape.activation(stat_dtype(q.dtype()), {shape.n_heads, a.rows()});
  kernels_of(backend).shared_keys_forward(a, lse, GradMode::Write, q.value(), keys, shape);
  Tensor y = tape.activation(q.dtype(), a.shape());
  backend.scale(y, GradMode::Write, 1, gate.value(), a);
  if (!tape.wants(q, pk, pv, gate)) return tape.constant(std::move(y));
  return tape.record<AdapterAttentionNode>(std::move(y), q, pk, pv, std::move(keys), gate, shape,
                                           std::move(a), std::move(lse));
}

}  // namespace lk
