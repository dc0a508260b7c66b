#include "autograd/thin.h"

namespace lk::thin {
namespace {

// The device's kernels if `planned` names one for the product, else null.
LoraKernels* kernels(Backend& backend, int planned) {
  return planned > 0 ? backend.lora_kernels() : nullptr;
}

Tensor columns_of(const Tensor& thin, const ThinPart& p) {
  return thin.slice_cols(p.column, p.column + p.rank);
}

}  // namespace

Tensor empty_bits(Backend& backend, const ThinPlan& plan, std::int64_t tokens) {
  if (!kernels(backend, plan.forward())) return {};
  return backend.empty(Tag::Activations, DType::U8, *plan.kept_bits(tokens));
}

void forward(Backend& backend, const ThinPlan& plan, const Tensor& s, double scale, const Tensor& x,
             const Tensor& a, std::span<const ThinPart> parts, const InputDropout& drop) {
  if (drop.p == 0) return backend.matmul_nt(s, GradMode::Write, scale, x, a);
  if (LoraKernels* k = kernels(backend, plan.forward()))
    return k->forward(plan, s, scale, x, a, parts, drop);
  Tensor dropped = backend.empty(Tag::Workspace, x.dtype(), x.shape());
  backend.fill(s, 0.0);
  for (const ThinPart& p : parts) {
    backend.dropout(dropped, GradMode::Write, x, drop.p, drop.key_of(p));
    backend.matmul_nt(columns_of(s, p), GradMode::Write, scale, dropped,
                      a.slice_rows(p.column, p.column + p.rank));
  }
}

void into_x(Backend& backend, const ThinPlan& plan, const Tensor& dx, const Tensor& ds,
            const Tensor& a, std::span<const ThinPart> parts, const InputDropout& drop) {
  if (LoraKernels* k = kernels(backend, plan.into_x()))
    return k->into_x(plan, dx, ds, a, parts, drop);
  Tensor through = backend.empty(Tag::Workspace, dx.dtype(), dx.shape());
  for (const ThinPart& p : parts) {
    backend.matmul_nn(through, GradMode::Write, 1.0, columns_of(ds, p),
                      a.slice_rows(p.column, p.column + p.rank));
    backend.dropout(dx, GradMode::Add, through, drop.p, drop.key_of(p));
  }
}

void backward_b(Backend& backend, const ThinPlan& plan, const Tensor& ds, double scale,
                const Tensor& dy, const Tensor& b, const Tensor& s,
                std::span<const ThinPart> parts) {
  if (LoraKernels* k = kernels(backend, plan.backward_b()))
    return k->backward_b(plan, ds, scale, dy, b, s, parts);
  backend.matmul_nn(ds, GradMode::Write, scale, dy, b);
  for (const ThinPart& p : parts)
    backend.weight_gradient(p.dw, p.mode, 1.0, dy.slice_cols(p.begin, p.end), columns_of(s, p));
}

void backward_a(Backend& backend, const ThinPlan& plan, const Tensor& ds, const Tensor& x,
                const NormedInput* norm, std::span<const ThinPart> parts,
                const InputDropout& drop) {
  if (LoraKernels* k = kernels(backend, plan.backward_a()))
    return k->backward_a(plan, ds, x, norm, parts, drop);
  Tensor input = x, dropped;
  if (norm) {
    input = backend.empty(Tag::Workspace, x.dtype(), x.shape());
    backend.rmsnorm_forward(input, norm->rstd, x, norm->gain, norm->eps);
  }
  if (drop.p > 0) dropped = backend.empty(Tag::Workspace, x.dtype(), x.shape());
  for (const ThinPart& p : parts) {
    if (drop.p > 0) backend.dropout(dropped, GradMode::Write, input, drop.p, drop.key_of(p));
    backend.weight_gradient(p.dw, p.mode, 1.0, columns_of(ds, p), drop.p > 0 ? dropped : input);
  }
}

void swiglu_backward(Backend& backend, const ThinPlan& plan, const Tensor& dgate, const Tensor& dup,
                     const Tensor& dy, const Tensor& gate, const Tensor& up, const Tensor& ds,
                     std::span<const ThinPart> parts, const InputDropout& drop) {
  if (LoraKernels* k = kernels(backend, plan.swiglu_backward()))
    return k->swiglu_backward(plan, dgate, dup, dy, gate, up, ds, parts, drop);
  backend.gated_backward(Activation::Silu, dy, dgate, GradMode::Write, dup, dy, gate, up);
  backward_a(backend, plan, ds, dy, nullptr, parts, drop);
}

}  // namespace lk::thin
