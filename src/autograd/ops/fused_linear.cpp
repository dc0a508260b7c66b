#include "autograd/fused_linear.h"

namespace lk {
namespace {

// x with at least `margin` columns behind its rows: itself, or a copy.
Tensor roomy(const Tensor& x, std::int64_t margin) {
  if (x.margin() >= margin) return x;
  Tensor copy = x.backend().empty_with_margin(Tag::Workspace, x.dtype(), x.shape(), margin);
  x.backend().copy(copy, x);
  return copy;
}

// The parts as strips of x, with the gradients of their A if asked for.
std::vector<StripPart> strips_of_x(const FusedLinear& f, bool gradients) {
  std::vector<StripPart> strips;
  for (const FusedLinear::Part& p : f.parts) {
    if (!p.a) continue;
    StripPart strip{0, f.in, p.column, p.rank, {}, GradMode::Write, p.site};
    if (gradients) {
      Sink da = p.a->sink();
      strip.dw = da.tensor, strip.mode = da.mode;
    }
    strips.push_back(std::move(strip));
  }
  return strips;
}

// y and s of x, which has room for s: s is left in its margin. `addend`: what y starts from, or
// null.
Tensor forward(Tape& tape, const Tensor& x, const FusedLinear& f, std::int64_t margin,
               const InputDropout& drop, const Var* addend = nullptr) {
  Backend& backend = tape.backend();
  Tensor xs = x.widened(f.in + f.strip);
  if (f.strip > 0) {
    Tensor s = xs.slice_cols(f.in, f.in + f.strip);
    if (drop.p > 0)
      backend.strips_forward(s, f.scale, x, f.a(), strips_of_x(f, false), drop);
    else
      backend.matmul_nt(s, GradMode::Write, f.scale, x, f.a());
  }
  Tensor y = tape.activation(x.dtype(), {x.rows(), f.out}, margin);
  if (tape.unread()) return y;
  backend.matmul_nt(y, GradMode::Write, 1.0, xs, f.forward_matrix(),
                    addend ? addend->value() : Tensor());
  for (const FusedLinear::Part& part : f.parts)
    if (part.bias.defined()) backend.add_bias(y.slice_cols(part.begin, part.end), part.bias);
  return y;
}

// s (T,S) for the backward, apart from x's buffer so that it may go.
Tensor keep_s(Tape& tape, const Tensor& x, const FusedLinear& f) {
  if (f.strip == 0) return {};
  Tensor s = tape.activation(x.dtype(), {x.rows(), f.strip});
  tape.backend().copy(s, x.widened(f.in + f.strip).slice_cols(f.in, f.in + f.strip));
  return s;
}

// The backward in its two halves. ds goes into dy's margin.
class Backward {
 public:
  Backward(Backend& backend, const FusedLinear& f, const InputDropout& drop, const Tensor& dy,
           const Tensor& s)
      : backend_(backend), f_(f), drop_(drop), dy_(roomy(dy, f.strip)) {
    if (f.strip == 0) return;
    dys_ = dy_.widened(f.out + f.strip);
    std::vector<StripPart> parts;
    for (const FusedLinear::Part& p : f.parts) {
      if (!p.b) continue;
      Sink db = p.b->sink();
      parts.push_back({p.begin, p.end, p.column, p.rank, db.tensor, db.mode, p.site});
    }
    backend.strips_backward_b(ds(), f.scale, dy_, f.b(), s, parts);
  }
  // da (+)= dsᵀ x, x as it is or normed
  void into_a(const Tensor& x, const NormedInput* norm = nullptr) {
    if (f_.strip > 0) backend_.strips_backward_a(ds(), x, norm, strips_of_x(f_, true), drop_);
  }
  // The same of x = silu(gate) * up, and dgate over gate, dup over up. dx's values are lost.
  void into_a_and_swiglu(const Tensor& dx, const Tensor& gate, const Tensor& up) {
    if (f_.strip > 0)
      backend_.swiglu_strips_backward(gate, up, dx, gate, up, ds(), strips_of_x(f_, true), drop_);
    else
      backend_.gated_backward(Activation::Silu, {}, gate, GradMode::Write, up, dx, gate, up);
  }
  // dx (T,K) (+)= [dy | ds] [W ; A]
  void into_x(const Sink& dx) {
    if (f_.strip > 0 && drop_.p > 0) {
      backend_.matmul_nn(dx.tensor, dx.mode, 1.0, dy_, f_.w());
      backend_.strips_into_x(dx.tensor, ds(), f_.a(), strips_of_x(f_, false), drop_);
      return;
    }
    backend_.matmul_nn(dx.tensor, dx.mode, 1.0, f_.strip > 0 ? dys_ : dy_, f_.backward_matrix());
  }

 private:
  Tensor ds() const { return dys_.slice_cols(f_.out, f_.out + f_.strip); }
  Backend& backend_;
  const FusedLinear& f_;
  const InputDropout& drop_;
  Tensor dy_, dys_;
};

// With s = scale x aᵀ and ds = scale dy b:  db = dyᵀ s,  da = dsᵀ x,  dx = dy w + ds a; with
// dropout x is masked in s and da, and ds a likewise. Saves x and s.
struct FusedLinearNode : Node {
  Var x;
  Edge addend;
  Tensor s;
  const FusedLinear& f;
  InputDropout drop;
  FusedLinearNode(const Var& x, const Edge& addend, Tensor s, const FusedLinear& f,
                  const InputDropout& drop)
      : x(x), addend(addend), s(std::move(s)), f(f), drop(drop) {}
  const char* name() const override { return "fused_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    tape.pass(addend, dy);
    Backward b(tape.backend(), f, drop, dy, s);
    b.into_a(x.value());
    if (Sink dx = tape.sink(x)) b.into_x(dx);
  }
};

}  // namespace

// y = h + x (W + scale B A)ᵀ + bias
Var fused_linear_onto(Tape& tape, const Var& h, const Var& x, const FusedLinear& f,
                      std::int64_t margin, const InputDropout& drop) {
  auto [T, K] = x.dims<2>("fused_linear_onto: x (T,K)");
  check(K == f.in, "fused_linear_onto: x has ", K, " columns, the matrix ", f.in);
  h.value().expect({T, f.out}, "fused_linear_onto: h (T,N)");
  Tensor xs = roomy(x.value(), f.strip);
  Tensor y = forward(tape, xs, f, margin, drop, &h);
  if (!tape.recording()) return tape.constant(std::move(y));
  // s is kept in the margin of x's own buffer, which is kept anyway.
  const bool in_place = xs.raw() == x.value().raw();
  Tensor s = in_place && f.strip > 0 ? xs.widened(f.in + f.strip).slice_cols(f.in, f.in + f.strip)
                                     : keep_s(tape, xs, f);
  return tape.record<FusedLinearNode>(std::move(y), x, h, std::move(s), f, drop);
}

namespace {

// As above with x = h * rstd * gain, of which da needs no more than h; then the norm's own backward
// (norm.cpp). Saves rstd (T), s and h, which the residual stream keeps anyway.
struct FusedNormLinearNode : Node {
  Var h;
  Weight gain;
  double eps;
  Tensor rstd, s;
  const FusedLinear& f;
  InputDropout drop;
  FusedNormLinearNode(const Var& h, const Weight& gain, double eps, Tensor rstd, Tensor s,
                      const FusedLinear& f, const InputDropout& drop)
      : h(h), gain(gain), eps(eps), rstd(std::move(rstd)), s(std::move(s)), f(f), drop(drop) {}
  const char* name() const override { return "fused_norm_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Backward b(backend, f, drop, dy, s);
    const NormedInput norm{rstd, gain, eps};
    b.into_a(h.value(), &norm);
    if (Sink dh = tape.sink(h)) {
      Tensor dx = backend.empty(Tag::Workspace, h.dtype(), h.value().shape());
      b.into_x({dx, GradMode::Write});
      backend.rmsnorm_backward(dh.tensor, dh.mode, dx, h.value(), gain, rstd);
    }
  }
};

}  // namespace

// y = rmsnorm(h) (W + scale B A)ᵀ + bias
Var fused_norm_linear(Tape& tape, const Var& h, const Weight& gain, double eps,
                      const FusedLinear& f, std::int64_t margin, const InputDropout& drop) {
  auto [T, K] = h.dims<2>("fused_norm_linear: h (T,K)");
  check(K == f.in, "fused_norm_linear: h has ", K, " columns, the matrix ", f.in);
  gain.expect({K}, "fused_norm_linear: gain (K)");
  Tensor rstd = tape.activation(stat_dtype(h.dtype()), {T});
  Tensor x = tape.backend().empty_with_margin(Tag::Workspace, h.dtype(), {T, K}, f.strip);
  tape.backend().rmsnorm_forward(x, rstd, h.value(), gain, eps);
  Tensor y = forward(tape, x, f, margin, drop);
  if (!tape.recording()) return tape.constant(std::move(y));
  Tensor s = keep_s(tape, x, f);
  return tape.record<FusedNormLinearNode>(std::move(y), h, gain, eps, std::move(rstd), std::move(s),
                                          f, drop);
}

namespace {

// As above with x = silu(gate) * up. dx comes first here: what reads it with gate and up makes x
// again for da, and puts dgate over gate and dup over up. Saves gate, up and s.
struct FusedSwigluLinearNode : Node {
  Var gate_up;
  Edge addend;
  Tensor s;
  const FusedLinear& f;
  InputDropout drop;
  FusedSwigluLinearNode(const Var& gate_up, const Edge& addend, Tensor s, const FusedLinear& f,
                        const InputDropout& drop)
      : gate_up(gate_up), addend(addend), s(std::move(s)), f(f), drop(drop) {}
  const char* name() const override { return "fused_swiglu_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    tape.pass(addend, dy);
    Backward b(backend, f, drop, dy, s);
    const Tensor& value = gate_up.value();
    Tensor x = backend.empty(Tag::Workspace, dy.dtype(), {dy.rows(), f.in});
    Tensor gate = value.slice_cols(0, f.in), up = value.slice_cols(f.in, 2 * f.in);
    if (!gate_up.needs_grad()) {
      backend.gated_forward(Activation::Silu, x, gate, up);
      b.into_a(x);
      return;
    }
    b.into_x({x, GradMode::Write});
    b.into_a_and_swiglu(x, gate, up);
    tape.pass(gate_up, value);
  }
};

}  // namespace

// y = h + (silu(gate) * up) (W + scale B A)ᵀ + bias
Var fused_swiglu_linear_onto(Tape& tape, const Var& h, const Var& gate_up, const FusedLinear& f,
                             std::int64_t margin, const InputDropout& drop) {
  auto [T, width] = gate_up.dims<2>("fused_swiglu_linear_onto: gate_up (T,2K)");
  check(width == 2 * f.in, "fused_swiglu_linear_onto: gate_up has ", width, " columns, the matrix ",
        f.in);
  h.value().expect({T, f.out}, "fused_swiglu_linear_onto: h (T,N)");
  const Tensor& value = gate_up.value();
  Tensor x = tape.backend().empty_with_margin(Tag::Workspace, value.dtype(), {T, f.in}, f.strip);
  tape.backend().gated_forward(Activation::Silu, x, value.slice_cols(0, f.in),
                               value.slice_cols(f.in, 2 * f.in));
  Tensor y = forward(tape, x, f, margin, drop, &h);
  if (!tape.recording()) return tape.constant(std::move(y));
  Tensor s = keep_s(tape, x, f);
  return tape.record<FusedSwigluLinearNode>(std::move(y), gate_up, h, std::move(s), f, drop);
}

namespace {

// q, k and v of a packed buffer.
struct Qkv {
  Tensor q, k, v;
  Qkv(const Tensor& qkv, const AttentionShape& shape) {
    const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
    q = qkv.slice_cols(0, H * D);
    k = qkv.slice_cols(H * D, (H + G) * D);
    v = qkv.slice_cols((H + G) * D, (H + 2 * G) * D);
  }
};

// Attention's backward (attention.cpp) into one buffer, then dq and dk turned back in place. Saves
// the turned qkv, o and lse (H,T).
struct FusedAttentionNode : Node {
  Var qkv;
  Tensor table, positions, o, lse;
  AttentionShape shape;
  Segments segments;
  FusedAttentionNode(const Var& qkv, const Tensor& table, const Tensor& positions, Tensor o,
                     Tensor lse, const AttentionShape& shape, const Segments& segments)
      : qkv(qkv),
        table(table),
        positions(positions),
        o(std::move(o)),
        lse(std::move(lse)),
        shape(shape),
        segments(segments) {}
  const char* name() const override { return "fused_attention"; }
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
Var fused_attention(Tape& tape, const Var& qkv, const Tensor& rope_table, const Tensor& positions,
                    const AttentionShape& shape, const Segments& segments, std::int64_t margin) {
  const std::int64_t H = shape.n_heads, G = shape.n_kv_heads, D = shape.head_dim;
  const std::int64_t T = qkv.dims<2>("fused_attention: qkv (T,(H+2G)*D)")[0];
  qkv.value().expect({T, (H + 2 * G) * D}, "fused_attention: qkv (T,(H+2G)*D)");
  check(segments.total() == T, "fused_attention: segments hold ", segments.total(),
        " tokens, qkv has ", T);
  Backend& backend = tape.backend();
  if (rope_table.defined()) {
    Tensor turned = qkv.value().slice_cols(0, (H + G) * D);
    backend.rope(turned, GradMode::Write, turned, rope_table, positions, shape.head_dim, false);
  }
  Qkv in(qkv.value(), shape);
  Tensor o = tape.activation(qkv.dtype(), {T, H * D}, margin);
  Tensor lse = tape.activation(stat_dtype(qkv.dtype()), {H, T});
  backend.attention_forward(o, lse, in.q, in.k, in.v, shape, segments, segments);
  if (!tape.wants(qkv)) return tape.constant(std::move(o));
  return tape.record<FusedAttentionNode>(o, qkv, rope_table, positions, o, std::move(lse), shape,
                                         segments);
}

}  // namespace lk
