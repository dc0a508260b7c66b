#include "autograd/ops.h"
#include "autograd/ops/loss_node.h"

namespace lk {
namespace {

// Copies doubles to a device tensor of x's dtype and shape.
Tensor like(Tape& tape, const Var& x, std::span<const double> values) {
  Backend& backend = tape.backend();
  Tensor out = tape.activation(x.dtype(), x.value().shape());
  if (x.dtype() == DType::F64) {
    backend.upload(out, values.data(), values.size_bytes());
    return out;
  }
  const std::vector<float> narrow(values.begin(), values.end());
  Tensor f32 =
      x.dtype() == DType::F32 ? out : backend.empty(Tag::Workspace, DType::F32, x.value().shape());
  backend.upload(f32, narrow.data(), narrow.size() * sizeof(float));
  if (x.dtype() != DType::F32) backend.copy(out, f32);
  return out;
}

}  // namespace

Var host_loss(Tape& tape, const Var& x, const HostLoss& f) {
  check(static_cast<bool>(f), "host_loss: no function given");
  const std::vector<double> values = to_host_f64(x.value());
  std::vector<double> dx(values.size(), 0.0);
  const double loss = f(values, dx);
  Tensor y = tape.activation(stat_dtype(x.dtype()), {1});
  if (y.dtype() == DType::F64) {
    tape.backend().upload(y, &loss, sizeof loss);
  } else {
    const float narrow = static_cast<float>(loss);
    tape.backend().upload(y, &narrow, sizeof narrow);
  }
  if (!tape.wants(x)) return tape.constant(std::move(y));
  return tape.record<LossNode>(std::move(y), x, like(tape, x, dx));
}

}  // namespace lk
