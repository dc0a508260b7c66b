#include "lora/lora_linear.h"

#include <cmath>

namespace lk {
namespace {

// Backward of lora_linear. With s = drop(x) aᵀ (T,R), saved because it is tiny:
//   ds = scale dy b            db (+)= scale dyᵀ s           da (+)= dsᵀ drop(x)
//   dx (+)= dy w + drop'(ds a)                               there is no dw: w is frozen
// The dropout mask is drawn again from its key; the masked x is never stored.
struct LoraLinearNode : Node {
  Var x;
  Weight w;
  Parameter& a;
  Parameter& b;
  Tensor s;
  double scale;
  float p;
  RandomKey key;

  LoraLinearNode(const Var& x_in, const Weight& w_in, Parameter& a_in, Parameter& b_in, Tensor s_in,
                 double scale_in, float p_in, const RandomKey& key_in)
      : x(x_in),
        w(w_in),
        a(a_in),
        b(b_in),
        s(std::move(s_in)),
        scale(scale_in),
        p(p_in),
        key(key_in) {}

  const char* name() const override { return "lora_linear"; }

  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const Tensor& value = x.value();
    Sink db = b.sink();
    backend.weight_gradient(db.tensor, db.mode, scale, dy, s);
    Tensor ds = backend.empty(Tag::Backward, dy.dtype(), s.shape());
    backend.matmul_nn(ds, GradMode::Write, scale, dy, b.compute());
    Sink da = a.sink();
    if (p > 0) {
      Tensor dropped = backend.empty(Tag::Workspace, value.dtype(), value.shape());
      backend.dropout(dropped, GradMode::Write, value, p, key);
      backend.weight_gradient(da.tensor, da.mode, 1.0, ds, dropped);
    } else {
      backend.weight_gradient(da.tensor, da.mode, 1.0, ds, value);
    }
    if (Sink dx = tape.sink(x)) {
      backend.linear_backward_x(dx.tensor, dx.mode, dy, w);
      if (p > 0) {
        Tensor through = backend.empty(Tag::Backward, value.dtype(), value.shape());
        backend.matmul_nn(through, GradMode::Write, 1.0, ds, a.compute());
        backend.dropout(dx.tensor, GradMode::Add, through, p, key);
      } else {
        backend.matmul_nn(dx.tensor, GradMode::Add, 1.0, ds, a.compute());
      }
    }
  }
};

// Masters are F32 (F64 in checks) for every compute dtype.
Tensor kaiming_uniform(Backend& backend, DType compute_dtype, std::int64_t rank, std::int64_t in,
                       std::uint64_t seed, std::uint32_t site) {
  Tensor t = backend.empty(Tag::Params, stat_dtype(compute_dtype), {rank, in});
  // step = 2^40 - 1 keeps the initialisation's draws apart from those of every dropout mask.
  backend.uniform(t, 1.0f / std::sqrt(static_cast<float>(in)),
                  {seed, (std::uint64_t{1} << 40) - 1, site});
  return t;
}

Tensor zeros(Backend& backend, DType compute_dtype, Shape shape) {
  Tensor t = backend.empty(Tag::Params, stat_dtype(compute_dtype), shape);
  backend.fill(t, 0.0);
  return t;
}

}  // namespace

Var lora_linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias, Parameter& a,
                Parameter& b, double scale, float dropout, const RandomKey& key, Output output) {
  auto [T, K] = x.dims<2>("lora_linear: x (T,K)");
  std::int64_t N = w.shape()[0], R = a.shape()[0];
  w.expect({N, K}, "lora_linear: w (N,K)");
  check(a.shape() == Shape{R, K} && b.shape() == Shape{N, R}, "lora_linear: a ", a.shape(), " b ",
        b.shape(), " for w ", w.shape());
  Backend& backend = tape.backend();
  Tensor y = tape.activation(x.dtype(), {T, N});
  const bool read = output == Output::Read;
  if (read) backend.linear_forward(y, x.value(), w);
  if (read && bias) backend.add_bias(y, *bias);
  Tensor s = tape.activation(x.dtype(), {T, R});
  if (dropout > 0) {
    Tensor dropped = backend.empty(Tag::Workspace, x.dtype(), x.value().shape());
    backend.dropout(dropped, GradMode::Write, x.value(), dropout, key);
    backend.matmul_nt(s, GradMode::Write, 1.0, dropped, a.compute());
  } else {
    backend.matmul_nt(s, GradMode::Write, 1.0, x.value(), a.compute());
  }
  if (read) backend.matmul_nt(y, GradMode::Add, scale, s, b.compute());
  if (!tape.wants(x, a, b)) return tape.constant(std::move(y));
  return tape.record(std::move(y), std::make_unique<LoraLinearNode>(x, w, a, b, std::move(s), scale,
                                                                    dropout, key));
}

LoraLinear::LoraLinear(Backend& backend, std::string path, std::uint32_t site,
                       std::unique_ptr<FrozenLinear> base, const LoraShape& shape,
                       std::uint64_t seed, DType compute_dtype)
    : path_(std::move(path)),
      site_(site),
      base_(std::move(base)),
      shape_(shape),
      a_(path_ + ".lora_A.weight",
         kaiming_uniform(backend, compute_dtype, shape.rank, base_->in_features(), seed, site),
         compute_dtype),
      b_(path_ + ".lora_B.weight",
         zeros(backend, compute_dtype, {base_->out_features(), shape.rank}), compute_dtype) {
  if (shape.dora) dora_ = std::make_unique<Dora>(backend, path_, *base_, compute_dtype);
}

std::vector<Parameter*> LoraLinear::parameters() {
  std::vector<Parameter*> all = {&a_, &b_};
  if (dora_) all.push_back(&dora_->magnitude());
  return all;
}

Var LoraLinear::apply(Tape& tape, const Var& x, const ForwardMode& mode, Output output) {
  if (!enabled_) {
    Var y = base_->apply(tape, x, mode, output);
    if (start_) start_->add_to(y.value(), x.value(), shape_.scale());
    return y;
  }
  float p = mode.training ? shape_.dropout : 0.0f;
  if (dora_)
    return dora_->apply(tape, x, *base_, a_, b_, shape_.scale(), p, dropout_key(mode, site_),
                        output);
  return lora_linear(tape, x, base_->weight(), base_->bias(), a_, b_, shape_.scale(), p,
                     dropout_key(mode, site_), output);
}

void LoraLinear::adapt(Tape& tape, const Tensor& y, const Tensor& x, const ForwardMode& mode) {
  check(!tape.recording() && !mode.training, path_, ": adapt() has no backward and no dropout");
  if (!enabled_ && start_) start_->add_to(y, x, shape_.scale());
  if (!enabled_) return;
  Tensor s = tape.activation(x.dtype(), {x.rows(), shape_.rank});
  tape.backend().matmul_nt(s, GradMode::Write, 1.0, x, a_.compute());
  tape.backend().matmul_nt(y, GradMode::Add, shape_.scale(), s, b_.compute());
  if (dora_) dora_->adapt(y, *base_, a_, b_, shape_.scale());
}

}  // namespace lk
