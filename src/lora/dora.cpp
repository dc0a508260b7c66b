#include "lora/dora.h"

#include <cmath>
#include <vector>

#include "nn/model_weights.h"
#include "tensor/dense_scratch.h"
#include "tensor/dora_kernels.h"

namespace lk {
namespace {

// Squares of the norms of W's rows, summed in F64.
std::vector<double> row_norms_sq(const Weight& w) {
  const std::int64_t cols = w.shape()[1];
  std::vector<double> squares(static_cast<std::size_t>(w.shape()[0]));
  dispatch_float(w.dtype(), [&]<class T>() {
    const auto add = [&](std::int64_t first, std::int64_t last, const std::byte* from) {
      const T* row = reinterpret_cast<const T*>(from);
      for (std::int64_t n = first; n < last; ++n, row += cols)
        for (std::int64_t k = 0; k < cols; ++k) {
          const auto x = static_cast<double>(static_cast<accumulate_t<T>>(row[k]));
          squares[static_cast<std::size_t>(n)] += x * x;
        }
    };
    if (w.quantised()) return DenseScratch((*w.quantised())[Plane::Codes].backend(), w).look(add);
    const Tensor values = dense(w.values());
    values.backend().look_at(values, static_cast<std::size_t>(cols) * sizeof(T), add);
  });
  return squares;
}

Tensor upload_vector(Backend& backend, Tag tag, DType dtype, const std::vector<double>& values) {
  Tensor t = backend.empty(tag, dtype, {std::ssize(values)});
  dispatch_float(dtype, [&]<class T>() {
    std::vector<T> raw;
    for (double v : values) raw.push_back(static_cast<T>(static_cast<accumulate_t<T>>(v)));
    backend.upload(t, raw.data(), raw.size() * sizeof(T));
  });
  return t;
}

// y = x - dropped, in dropped's memory.
void subtract_from(const Tensor& dropped, const Tensor& x) {
  Backend& backend = x.backend();
  backend.scale(dropped, GradMode::Write, -1.0, {}, dropped);
  backend.add(dropped, dropped, x);
}

// A projection by itself: one part of all columns.
DoraPart whole(const Tensor& inverse, const Parameter& m) {
  return {.end = inverse.shape()[0], .m = m.value(), .inverse = inverse};
}

// Backward of dora_linear. With z = drop(x), v = z wᵀ + scale s bᵀ, s = z aᵀ, g = m inverse:
//   dm (+)= inverse sum over t of dy v        dv = g dy
//   ds = scale dv b       db (+)= scale dvᵀ s        da (+)= dsᵀ z
//   dx (+)= dv w + ds a                                       without dropout
//   dx (+)= dy w + drop'((dv - dy) w + ds a)                  with it
// The norms are constants, so nothing flows through `inverse`.
struct DoraLinearNode : Node {
  Var x;
  Weight w;
  Parameter &a, &b, &m;
  Tensor inverse, v, s;
  double scale;
  float p;
  RandomKey key;

  DoraLinearNode(const Var& x_in, const Weight& w_in, Parameter& a_in, Parameter& b_in,
                 Parameter& m_in, Tensor inverse_in, Tensor v_in, Tensor s_in, double scale_in,
                 float p_in, const RandomKey& key_in)
      : x(x_in),
        w(w_in),
        a(a_in),
        b(b_in),
        m(m_in),
        inverse(std::move(inverse_in)),
        v(std::move(v_in)),
        s(std::move(s_in)),
        scale(scale_in),
        p(p_in),
        key(key_in) {}

  const char* name() const override { return "dora_linear"; }

  void backward(Tape& tape, const Tensor& dy) override {
    Backend& backend = tape.backend();
    const Tensor& value = x.value();
    const Sink dm = m.sink();
    Tensor dv = backend.empty(Tag::Backward, dy.dtype(), dy.shape());
    DoraPart part = whole(inverse, m);
    part.dm = dm.tensor, part.mode = dm.mode;
    backend.dora_kernels()->scale_columns_backward(dv, dy, v, {&part, 1});
    const Sink db = b.sink(), da = a.sink();
    backend.weight_gradient(db.tensor, db.mode, scale, dv, s);
    Tensor ds = backend.empty(Tag::Backward, dy.dtype(), s.shape());
    backend.matmul_nn(ds, GradMode::Write, scale, dv, b.compute());
    if (p > 0) {
      Tensor dropped = backend.empty(Tag::Workspace, value.dtype(), value.shape());
      backend.dropout(dropped, GradMode::Write, value, p, key);
      backend.weight_gradient(da.tensor, da.mode, 1.0, ds, dropped);
    } else {
      backend.weight_gradient(da.tensor, da.mode, 1.0, ds, value);
    }
    const Sink dx = tape.sink(x);
    if (!dx) return;
    if (p == 0) {
      backend.linear_backward_x(dx.tensor, dx.mode, dv, w);
      backend.matmul_nn(dx.tensor, GradMode::Add, 1.0, ds, a.compute());
      return;
    }
    backend.linear_backward_x(dx.tensor, dx.mode, dy, w);
    backend.scale(dv, GradMode::Add, -1.0, {}, dy);
    Tensor through = backend.empty(Tag::Backward, value.dtype(), value.shape());
    backend.linear_backward_x(through, GradMode::Write, dv, w);
    backend.matmul_nn(through, GradMode::Add, 1.0, ds, a.compute());
    backend.dropout(dx.tensor, GradMode::Add, through, p, key);
  }
};

}  // namespace

void dora_inverse_norms(const Tensor& inverse, const Tensor& w_sq, const Weight& w,
                        const Parameter& a, const Parameter& b, double scale) {
  Backend& backend = inverse.backend();
  const std::int64_t N = w.shape()[0], R = a.shape()[0];
  Tensor wa = backend.empty(Tag::Workspace, inverse.dtype(), {N, R}),
         gram = backend.empty(Tag::Workspace, inverse.dtype(), {R, R});
  if (w.quantised())
    DenseScratch(backend, w).times(wa, a.compute());
  else
    backend.matmul_nt(wa, GradMode::Write, 1.0, w.values(), a.compute());
  backend.matmul_nt(gram, GradMode::Write, 1.0, a.compute(), a.compute());
  const DoraNorms norms{inverse, w_sq, wa, gram, b.compute(), scale};
  backend.dora_kernels()->inverse_norms({&norms, 1});
}

Var dora_linear(Tape& tape, const Var& x, const Weight& w, const Weight* bias, Parameter& a,
                Parameter& b, Parameter& m, const Tensor& inverse, double scale, float dropout,
                const RandomKey& key, Output output) {
  auto [T, K] = x.dims<2>("dora_linear: x (T,K)");
  const std::int64_t N = w.shape()[0], R = a.shape()[0];
  w.expect({N, K}, "dora_linear: w (N,K)");
  inverse.expect({N}, "dora_linear: inverse (N)");
  check(a.shape() == Shape{R, K} && b.shape() == Shape{N, R} && m.shape() == Shape{N},
        "dora_linear: a ", a.shape(), " b ", b.shape(), " m ", m.shape(), " for w ", w.shape());
  Backend& backend = tape.backend();
  Tensor z = x.value();
  if (dropout > 0) {
    z = backend.empty(Tag::Workspace, x.dtype(), x.value().shape());
    backend.dropout(z, GradMode::Write, x.value(), dropout, key);
  }
  Tensor v = tape.activation(x.dtype(), {T, N}), s = tape.activation(x.dtype(), {T, R});
  backend.linear_forward(v, z, w);
  backend.matmul_nt(s, GradMode::Write, 1.0, z, a.compute());
  backend.matmul_nt(v, GradMode::Add, scale, s, b.compute());
  Tensor y = tape.activation(x.dtype(), {T, N});
  if (output == Output::Read) {
    if (dropout > 0) {
      subtract_from(z, x.value());
      backend.linear_forward(y, z, w);
    }
    const DoraPart part = whole(inverse, m);
    backend.dora_kernels()->scale_columns(y, v, dropout > 0 ? y : Tensor(), {&part, 1});
    if (bias) backend.add_bias(y, *bias);
  }
  if (!tape.wants(x, a, b, m)) return tape.constant(std::move(y));
  return tape.record(std::move(y),
                     std::make_unique<DoraLinearNode>(x, w, a, b, m, inverse, std::move(v),
                                                      std::move(s), scale, dropout, key));
}

Dora::Dora(Backend& backend, const std::string& path, const FrozenLinear& base, DType compute_dtype)
    : m_([&] {
        const DType stat = stat_dtype(compute_dtype);
        std::vector<double> squares = row_norms_sq(base.weight());
        w_sq_ = upload_vector(backend, Tag::Weights, stat, squares);
        inverse_ = backend.empty(Tag::Weights, stat, w_sq_.shape());
        for (double& x : squares) x = std::sqrt(x);
        return Parameter(path + ".lora_magnitude_vector",
                         upload_vector(backend, Tag::Params, stat, squares), stat);
      }()) {}

// The factors are constants of a forward pass that trains, but a recording of it computes the norms
// again each time it runs, so what it leaves is no longer known on the host.
Var Dora::apply(Tape& tape, const Var& x, const FrozenLinear& base, Parameter& a, Parameter& b,
                double scale, float dropout, const RandomKey& key, Output output) {
  if (tape.recording()) {
    dora_inverse_norms(inverse_, w_sq_, base.weight(), a, b, scale);
    a_version_ = b_version_ = 0;
  } else {
    update_norms(base, a, b, scale);
  }
  return dora_linear(tape, x, base.weight(), base.bias(), a, b, m_, inverse_, scale, dropout, key,
                     output);
}

void Dora::adapt(const Tensor& y, const FrozenLinear& base, const Parameter& a, const Parameter& b,
                 double scale) {
  update_norms(base, a, b, scale);
  const DoraPart part = whole(inverse_, m_);
  y.backend().dora_kernels()->scale_columns(y, y, {}, {&part, 1}, base.bias());
}

// Computes the norms, unless they are those of the factors as they are.
void Dora::update_norms(const FrozenLinear& base, const Parameter& a, const Parameter& b,
                        double scale) {
  if (a_version_ == a.version() && b_version_ == b.version()) return;
  dora_inverse_norms(inverse_, w_sq_, base.weight(), a, b, scale);
  a_version_ = a.version(), b_version_ = b.version();
}

}  // namespace lk
