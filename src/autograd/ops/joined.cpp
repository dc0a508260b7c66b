#include "autograd/joined.h"

#include "autograd/thin.h"
#include "tensor/dora_kernels.h"

namespace lk {
namespace {

// x itself if it has at least `margin` columns behind its rows, else a copy that has.
Tensor roomy(const Tensor& x, std::int64_t margin) {
  if (x.margin() >= margin) return x;
  Tensor copy = x.backend().empty_with_margin(Tag::Workspace, x.dtype(), x.shape(), margin);
  x.backend().copy(copy, x);
  return copy;
}

// The adapted parts for products of x with A: each part reads all of x.
std::vector<ThinPart> parts_of_x(const JoinedLinear& f) {
  std::vector<ThinPart> parts;
  for (const JoinedLinear::Part& p : f.parts)
    if (p.a) parts.push_back({0, f.in, p.column, p.rank, {}, GradMode::Write, p.site});
  return parts;
}

// The adapted parts for A's gradients: each part reads all of x.
std::vector<ThinPart> parts_of_da(const JoinedLinear& f) {
  std::vector<ThinPart> parts;
  for (const JoinedLinear::Part& p : f.parts) {
    if (!p.a) continue;
    Sink da = p.a->sink();
    parts.push_back({0, f.in, p.column, p.rank, da.tensor, da.mode, p.site});
  }
  return parts;
}

// The adapted parts for B's gradients: each part reads its own columns of dy.
std::vector<ThinPart> parts_of_db(const JoinedLinear& f) {
  std::vector<ThinPart> parts;
  for (const JoinedLinear::Part& p : f.parts) {
    if (!p.b) continue;
    Sink db = p.b->sink();
    parts.push_back({p.begin, p.end, p.column, p.rank, db.tensor, db.mode, p.site});
  }
  return parts;
}

// The parts with magnitudes.
std::vector<DoraPart> dora_parts(const JoinedLinear& f) {
  std::vector<DoraPart> parts;
  for (const JoinedLinear::Part& p : f.parts)
    if (p.m)
      parts.push_back({.begin = p.begin, .end = p.end, .m = p.m->value(), .inverse = p.inverse});
  return parts;
}

// What a product makes of x: y, and v if it isn't y's own values and a backward reads it.
struct Product {
  Tensor y, v;
};

// Dropout of T tokens. If the op is `recorded`, it has memory for the masks, which forward draws and
// the backward reads.
InputDropout with_bits(Tape& tape, const JoinedLinear& f, std::int64_t T, InputDropout drop,
                       bool recorded) {
  if (recorded && f.thin > 0 && drop.p > 0) drop.bits = thin::empty_bits(tape.backend(), f.plan, T);
  return drop;
}

// Computes y and s of x, which has room for s: s is left in its margin. `addend` is what y starts
// from, or null.
Product forward(Tape& tape, const Tensor& x, const JoinedLinear& f, std::int64_t margin,
                const InputDropout& drop, Output output = Output::Read,
                const Var* addend = nullptr) {
  Backend& backend = tape.backend();
  Tensor xs = x.widened(f.in + f.thin);
  if (f.thin > 0)
    thin::forward(backend, f.plan, xs.slice_cols(f.in, f.in + f.thin), f.scale, x, f.a(),
                  parts_of_x(f), drop);
  Tensor y = tape.activation(x.dtype(), {x.rows(), f.out}, margin), v;
  if (f.scales_columns()) {
    v = tape.activation(x.dtype(), {x.rows(), f.out});
    f.times_wb(v, xs, {});
    if (output == Output::Unread) return {y, v};
    backend.dora_kernels()->scale_columns(y, v, addend ? addend->value() : Tensor(), dora_parts(f));
  } else {
    if (output == Output::Unread) return {y, {}};
    f.times_wb(y, xs, addend ? addend->value() : Tensor());
  }
  for (const JoinedLinear::Part& part : f.parts)
    if (part.bias.defined()) backend.add_bias(y.slice_cols(part.begin, part.end), part.bias);
  return {y, v};
}

// dv of dy, with room for ds behind its rows, and the gradients of the magnitudes; dy itself without
// them.
Tensor through_columns(const Tensor& dy, const Tensor& v, const JoinedLinear& f) {
  if (!v.defined()) return roomy(dy, f.thin);
  Backend& backend = dy.backend();
  Tensor dv = backend.empty_with_margin(Tag::Backward, dy.dtype(), dy.shape(), f.thin);
  std::vector<DoraPart> parts = dora_parts(f);
  auto part = parts.begin();
  for (const JoinedLinear::Part& p : f.parts) {
    if (!p.m) continue;
    const Sink dm = p.m->sink();
    part->dm = dm.tensor, part->mode = dm.mode;
    ++part;
  }
  backend.dora_kernels()->scale_columns_backward(dv, dy, v, parts);
  return dv;
}

// Whether such an op records a node. Below the first trained factor there is nothing to record.
bool wanted(const Tape& tape, const JoinedLinear& f, const auto&... inputs) {
  return tape.wants(inputs...) || (tape.recording() && f.trains());
}

// s (T,S) for the backward. It is copied out of x's margin so that x may be freed.
Tensor keep_s(Tape& tape, const Tensor& x, const JoinedLinear& f) {
  if (f.thin == 0) return {};
  Tensor s = tape.activation(x.dtype(), {x.rows(), f.thin});
  tape.backend().copy(s, x.widened(f.in + f.thin).slice_cols(f.in, f.in + f.thin));
  return s;
}

// The backward in two halves: into_a and into_x. ds goes into dy's margin.
class Backward {
 public:
  Backward(Backend& backend, const JoinedLinear& f, const InputDropout& drop, const Tensor& dy,
           const Tensor& s, const Tensor& v)
      : backend_(backend), f_(f), drop_(drop), dy_(through_columns(dy, v, f)) {
    if (f.thin == 0) return;
    dys_ = dy_.widened(f.out + f.thin);
    thin::backward_b(backend, f.plan, ds(), f.scale, dy_, f.b(), s, parts_of_db(f));
  }
  // da (+)= dsᵀ x, where x is the input or, with `norm`, the normed input
  void into_a(const Tensor& x, const NormedInput* norm = nullptr) {
    if (f_.thin > 0) thin::backward_a(backend_, f_.plan, ds(), x, norm, parts_of_da(f_), drop_);
  }
  // into_a with x = act(gate) * up; also writes dgate over gate and dup over up. dx's values are
  // lost.
  void into_a_and_gated(Activation act, const Tensor& dx, const Tensor& gate, const Tensor& up) {
    if (f_.thin > 0 && act == Activation::Silu)
      return thin::swiglu_backward(backend_, f_.plan, gate, up, dx, gate, up, ds(), parts_of_da(f_),
                                   drop_);
    const Tensor x = f_.thin > 0 ? dx : Tensor();
    backend_.gated_backward(act, x, gate, GradMode::Write, up, dx, gate, up);
    into_a(x);
  }
  // dx (T,K) (+)= [dy | ds] [W ; A]
  void into_x(const Sink& dx) {
    if (f_.thin > 0 && drop_.p > 0) {
      f_.times_wa(dx.tensor, dx.mode, dy_);
      thin::into_x(backend_, f_.plan, dx.tensor, ds(), f_.a(), parts_of_x(f_), drop_);
      return;
    }
    f_.times_wa(dx.tensor, dx.mode, f_.thin > 0 ? dys_ : dy_);
  }

 private:
  Tensor ds() const { return dys_.slice_cols(f_.out, f_.out + f_.thin); }
  Backend& backend_;
  const JoinedLinear& f_;
  const InputDropout& drop_;
  Tensor dy_, dys_;  // with DoRA, dv
};

// With s = scale x aᵀ and ds = scale dy b: db = dyᵀ s, da = dsᵀ x, dx = dy w + ds a. Dropout masks
// x in s and da, and ds a. Saves x, s and the masks' bits.
struct JoinedLinearNode : Node {
  Var x;
  Edge addend;
  Tensor s, v;
  const JoinedLinear& f;
  InputDropout drop;
  JoinedLinearNode(const Var& x, const Edge& addend, Tensor s, Tensor v, const JoinedLinear& f,
                   const InputDropout& drop)
      : x(x), addend(addend), s(std::move(s)), v(std::move(v)), f(f), drop(drop) {}
  const char* name() const override { return "joined_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    tape.pass(addend, dy);
    Backward b(tape.backend(), f, drop, dy, s, v);
    b.into_a(x.value());
    if (Sink dx = tape.sink(x)) b.into_x(dx);
  }
};

}  // namespace

void JoinedLinear::put_parts(DenseScratch& dense) const {
  for (const Part& p : parts) dense.put(p.begin, p.apart);
}

std::int64_t JoinedLinear::scratch_margin() const {
  const auto quantised = [](const Part& p) { return p.apart.quantised() != nullptr; };
  return std::any_of(parts.begin(), parts.end(), quantised) ? 0 : thin;
}

void JoinedLinear::times_a(const Tensor& products) const {
  Backend& backend = products.backend();
  if (matrix)
    return backend.matmul_nt(products, GradMode::Write, 1.0,
                             matrix.slice_cols(0, in).slice_rows(0, out + thin), a());
  DenseScratch dense(backend, apart_a.dtype(), out + thin, in, scratch_margin());
  put_parts(dense);
  dense.put(out, 0, apart_a);
  dense.times(products, apart_a);
}

ThinShape JoinedLinear::thin_shape() const {
  ThinShape shape{in, out, thin, (matrix ? matrix : apart_a).dtype(), dropout > 0, {}};
  for (const Part& p : parts)
    if (p.a) shape.parts.push_back({p.begin, p.end, p.column, p.rank});
  return shape;
}

void update_norms(Backend& backend, std::initializer_list<const JoinedLinear*> joined) {
  std::vector<DoraNorms> norms;
  for (const JoinedLinear* f : joined) {
    if (!f || !f->scales_columns()) continue;
    Tensor products =
        backend.empty(Tag::Workspace, stat_dtype(f->a().dtype()), {f->out + f->thin, f->thin});
    f->times_a(products);
    for (const JoinedLinear::Part& p : f->parts) {
      if (!p.m) continue;
      const std::int64_t column = p.column, end = p.column + p.rank;
      norms.push_back({p.inverse, p.w_sq,
                       products.slice_rows(p.begin, p.end).slice_cols(column, end),
                       products.slice_rows(f->out + column, f->out + end).slice_cols(column, end),
                       f->b().slice_rows(p.begin, p.end).slice_cols(column, end), f->scale});
    }
  }
  if (!norms.empty()) backend.dora_kernels()->inverse_norms(norms);
}

std::vector<Fp8Part> JoinedLinear::fp8_parts() const {
  std::vector<Fp8Part> all;
  for (const Part& p : parts) all.push_back({p.begin, p.end, &p.apart});
  return all;
}

void JoinedLinear::times_wb(const Tensor& y, const Tensor& x, const Tensor& addend) const {
  Backend& backend = y.backend();
  if (matrix)
    return backend.matmul_nt(y, GradMode::Write, 1.0, x, matrix.slice_rows(0, out), addend);
  if (const Fp8Product product{backend, fp8_parts(), x.rows(), x.dtype()})
    return product.forward(y, GradMode::Write, x.slice_cols(0, in), addend,
                           thin > 0 ? Fp8LowRank{x.slice_cols(in, in + thin), b()} : Fp8LowRank{});
  DenseScratch dense(backend, x.dtype(), out, in + thin);
  put_parts(dense);
  if (thin > 0) dense.put(0, in, apart_b);
  dense.matmul_nt(y, x, addend);
}

void JoinedLinear::times_wa(const Tensor& dx, GradMode mode, const Tensor& dy) const {
  Backend& backend = dx.backend();
  const std::int64_t rows = dy.cols();  // N, or N + S
  if (matrix)
    return backend.matmul_nn(dx, mode, 1.0, dy, matrix.slice_cols(0, in).slice_rows(0, rows));
  if (const Fp8Product product{backend, fp8_parts(), dy.rows(), dy.dtype()})
    return product.backward_x(
        dx, mode, dy.slice_cols(0, out),
        rows > out ? Fp8LowRank{dy.slice_cols(out, rows), a()} : Fp8LowRank{});
  DenseScratch dense(backend, dy.dtype(), rows, in, scratch_margin());
  put_parts(dense);
  if (rows > out) dense.put(out, 0, apart_a);
  dense.matmul_nn(dx, mode, dy);
}

namespace {

// `h` is null without an addend.
Var joined_product(Tape& tape, const Var* h, const Var& x, const JoinedLinear& f,
                   std::int64_t margin, const InputDropout& drop, Output output) {
  auto [T, K] = x.dims<2>("joined_linear: x (T,K)");
  check(K == f.in, "joined_linear: x has ", K, " columns, the matrix ", f.in);
  if (h) h->value().expect({T, f.out}, "joined_linear: h (T,N)");
  const bool recorded = h ? wanted(tape, f, *h, x) : wanted(tape, f, x);
  const InputDropout kept = with_bits(tape, f, T, drop, recorded);
  Tensor xs = roomy(x.value(), f.thin);
  auto [y, v] = forward(tape, xs, f, margin, kept, output, h);
  if (!recorded) return tape.constant(std::move(y));
  // s is kept in the margin of x's own buffer if x is kept anyway.
  const bool in_place = xs.raw() == x.value().raw();
  Tensor s = in_place && f.thin > 0 ? xs.widened(f.in + f.thin).slice_cols(f.in, f.in + f.thin)
                                    : keep_s(tape, xs, f);
  return tape.record<JoinedLinearNode>(std::move(y), x, h ? Edge(*h) : Edge(), std::move(s),
                                       std::move(v), f, kept);
}

}  // namespace

// y = x (W + scale B A)ᵀ + bias
Var joined_linear(Tape& tape, const Var& x, const JoinedLinear& f, std::int64_t margin,
                  const InputDropout& drop) {
  return joined_product(tape, nullptr, x, f, margin, drop, Output::Read);
}

// y = h + x (W + scale B A)ᵀ + bias
Var joined_linear_onto(Tape& tape, const Var& h, const Var& x, const JoinedLinear& f,
                       std::int64_t margin, const InputDropout& drop, Output output) {
  return joined_product(tape, &h, x, f, margin, drop, output);
}

namespace {

// joined_linear with x = h * rstd * gain: da needs only h. The norm's own backward follows
// (norm.cpp). Saves rstd (T), s, the masks' bits and h, which the residual stream keeps anyway.
struct JoinedNormLinearNode : Node {
  Var h;
  Weight gain;
  double eps;
  Tensor rstd, s, v;
  const JoinedLinear& f;
  InputDropout drop;
  JoinedNormLinearNode(const Var& h, const Weight& gain, double eps, Tensor rstd, Tensor s,
                       Tensor v, const JoinedLinear& f, const InputDropout& drop)
      : h(h),
        gain(gain),
        eps(eps),
        rstd(std::move(rstd)),
        s(std::move(s)),
        v(std::move(v)),
        f(f),
        drop(drop) {}
  const char* name() const override { return "joined_norm_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    Backward b(backend, f, drop, dy, s, v);
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
Var joined_norm_linear(Tape& tape, const Var& h, const Weight& gain, double eps,
                       const JoinedLinear& f, std::int64_t margin, const InputDropout& drop) {
  auto [T, K] = h.dims<2>("joined_norm_linear: h (T,K)");
  check(K == f.in, "joined_norm_linear: h has ", K, " columns, the matrix ", f.in);
  gain.expect({K}, "joined_norm_linear: gain (K)");
  Tensor rstd = tape.activation(stat_dtype(h.dtype()), {T});
  Tensor x = tape.backend().empty_with_margin(Tag::Workspace, h.dtype(), {T, K}, f.thin);
  tape.backend().rmsnorm_forward(x, rstd, h.value(), gain, eps);
  const bool recorded = wanted(tape, f, h);
  const InputDropout kept = with_bits(tape, f, T, drop, recorded);
  auto [y, v] = forward(tape, x, f, margin, kept);
  if (!recorded) return tape.constant(std::move(y));
  Tensor s = keep_s(tape, x, f);
  return tape.record<JoinedNormLinearNode>(std::move(y), h, gain, eps, std::move(rstd),
                                           std::move(s), std::move(v), f, kept);
}

namespace {

// Note [Gradients over gate and up]: gate and up are a step's largest activations, and their
// gradients would be just as large. So backward writes dgate over gate and dup over up, and passes
// the buffer on as the gradient. This is the only place where a saved value is overwritten. It is
// safe because gate_up comes from one product, whose node does not save its output, and nobody else
// reads it.
//
// joined_linear with x = act(gate) * up. dx is computed first here: the kernel that reads it with
// gate and up computes x again for da. Saves gate, up, s and the masks' bits.
struct JoinedGatedLinearNode : Node {
  Activation act;
  Var gate_up;
  Edge addend;
  Tensor s, v;
  const JoinedLinear& f;
  InputDropout drop;
  JoinedGatedLinearNode(Activation act, const Var& gate_up, const Edge& addend, Tensor s, Tensor v,
                        const JoinedLinear& f, const InputDropout& drop)
      : act(act),
        gate_up(gate_up),
        addend(addend),
        s(std::move(s)),
        v(std::move(v)),
        f(f),
        drop(drop) {}
  const char* name() const override { return "joined_gated_linear"; }
  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    tape.pass(addend, dy);
    Backward b(backend, f, drop, dy, s, v);
    const Tensor& value = gate_up.value();
    Tensor x = backend.empty(Tag::Workspace, dy.dtype(), {dy.rows(), f.in});
    Tensor gate = value.slice_cols(0, f.in), up = value.slice_cols(f.in, 2 * f.in);
    if (!gate_up.needs_grad()) {
      backend.gated_forward(act, x, gate, up);
      b.into_a(x);
      return;
    }
    b.into_x({x, GradMode::Write});
    b.into_a_and_gated(act, x, gate, up);
    tape.pass(gate_up, value);
  }
};

Var gated_product(Tape& tape, Activation act, const Var* h, const Var& gate_up,
                  const JoinedLinear& f, std::int64_t margin, const InputDropout& drop,
                  Output output) {
  auto [T, width] = gate_up.dims<2>("joined_gated_linear: gate_up (T,2K)");
  check(width == 2 * f.in, "joined_gated_linear: gate_up has ", width, " columns, the matrix ",
        f.in);
  if (h) h->value().expect({T, f.out}, "joined_gated_linear: h (T,N)");
  const Tensor& value = gate_up.value();
  Tensor x = tape.backend().empty_with_margin(Tag::Workspace, value.dtype(), {T, f.in}, f.thin);
  tape.backend().gated_forward(act, x, value.slice_cols(0, f.in), value.slice_cols(f.in, 2 * f.in));
  const bool recorded = h ? wanted(tape, f, *h, gate_up) : wanted(tape, f, gate_up);
  const InputDropout kept = with_bits(tape, f, T, drop, recorded);
  auto [y, v] = forward(tape, x, f, margin, kept, output, h);
  if (!recorded) return tape.constant(std::move(y));
  Tensor s = keep_s(tape, x, f);
  return tape.record<JoinedGatedLinearNode>(std::move(y), act, gate_up, h ? Edge(*h) : Edge(),
                                            std::move(s), std::move(v), f, kept);
}

}  // namespace

// y = (act(gate) * up) (W + scale B A)ᵀ + bias
Var joined_gated_linear(Tape& tape, Activation act, const Var& gate_up, const JoinedLinear& f,
                        std::int64_t margin, const InputDropout& drop) {
  return gated_product(tape, act, nullptr, gate_up, f, margin, drop, Output::Read);
}

// y = h + (act(gate) * up) (W + scale B A)ᵀ + bias
Var joined_gated_linear_onto(Tape& tape, Activation act, const Var& h, const Var& gate_up,
                             const JoinedLinear& f, std::int64_t margin, const InputDropout& drop,
                             Output output) {
  return gated_product(tape, act, &h, gate_up, f, margin, drop, output);
}

}  // namespace lk
