// The optimizer step: the gradients' norm, then AdamW over all parameters.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend_impl.h"
#include "cpu/fast/simd.h"
#include "cpu/fast/slices.h"
#include "cpu/kernels.h"

namespace lk {

using namespace cpu;

namespace {

// The constants of one update, computed once for all elements. Source: Loshchilov & Hutter 2019;
// the order of operations is that of torch.optim.AdamW, so that training curves can be compared.
template <class A>
struct AdamWFactors {
  A clip, decay, beta1, beta2, rate, root2,
      eps;  // rate = lr / (1 - beta1^t), root2 = sqrt(1 - beta2^t)
};

template <class A>
AdamWFactors<A> factors(const AdamWStep& step, const AdamWSlot& slot, double norm) {
  double t = static_cast<double>(step.step);
  const double lr = static_cast<double>(step.lr) * slot.lr_factor;
  double clip = step.max_norm > 0 ? std::min(1.0, step.max_norm / (norm + 1e-6)) : 1.0;
  return {static_cast<A>(clip),
          static_cast<A>(1.0 - lr * slot.weight_decay),
          static_cast<A>(step.beta1),
          static_cast<A>(step.beta2),
          static_cast<A>(lr / (1.0 - std::pow(static_cast<double>(step.beta1), t))),
          static_cast<A>(std::sqrt(1.0 - std::pow(static_cast<double>(step.beta2), t))),
          static_cast<A>(step.eps)};
}

// ---- plain twin: the definition ---------------------------------------------------------------

template <class A>
void adamw_plain(A* value, const A* grad, A* m, A* v, std::int64_t n, const AdamWFactors<A>& f) {
  for (std::int64_t i = 0; i < n; ++i) {
    A g = grad[i] * f.clip;
    m[i] = f.beta1 * m[i] + (A(1) - f.beta1) * g;
    v[i] = f.beta2 * v[i] + (A(1) - f.beta2) * g * g;
    value[i] = value[i] * f.decay - f.rate * m[i] / (std::sqrt(v[i]) / f.root2 + f.eps);
  }
}

// ---- fast path: a piece of one slot -----------------------------------------------------------

LK_SIMD void adamw_piece(float* value, const float* grad, float* m, float* v, bf16* compute,
                         std::int64_t n, const AdamWFactors<float>& f) {
  const float clip = f.clip, decay = f.decay, beta1 = f.beta1, beta2 = f.beta2;
  const float rate = f.rate, root2 = f.root2, eps = f.eps;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * clip;
    m[i] = beta1 * m[i] + (1.0f - beta1) * g;
    v[i] = beta2 * v[i] + (1.0f - beta2) * g * g;
    value[i] = value[i] * decay - rate * m[i] / (__builtin_sqrtf(v[i]) / root2 + eps);
  }
  if (compute) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) compute[i] = narrow<bf16>(value[i]);
  }
}

}  // namespace

void CpuBackend::sum_squares(const Tensor& out, std::span<const Tensor> tensors) {
  double total = 0;
  for (double x : square_sums(tensors)) total += x;  // fast/slices.cpp
  dispatch_float(out.dtype(), [&]<class O>() { *out.data<O>() = rounded<O>(total); });
}

void CpuBackend::adamw(std::span<const AdamWSlot> slots, const AdamWStep& step,
                       const Tensor& norm_sq) {
  double norm = std::sqrt(dispatch_float(
      norm_sq.dtype(), [&]<class T>() { return static_cast<double>(load(*norm_sq.data<T>())); }));
  if (!std::isfinite(norm)) return;
  for (const AdamWSlot& slot : slots) {
    const DType dtype = slot.value.dtype();
    check(dtype == DType::F32 || dtype == DType::F64, "adamw: masters are F32 or F64");
    for (const Tensor* x : {&slot.value, &slot.grad, &slot.m, &slot.v})
      check(x->dtype() == dtype && x->contiguous() && x->numel() == slot.value.numel(),
            "adamw: a slot's buffers must be flat, of one dtype and size");
    if (slot.compute.defined())
      check(slot.compute.dtype() == DType::BF16 && slot.compute.numel() == slot.value.numel(),
            "adamw: the compute copy must be BF16 of the same size");
  }
  // The pieces of all slots, so that many small ones are shared out like one large one.
  struct Piece {
    const AdamWSlot* slot;
    std::int64_t begin, length;
  };
  std::vector<Piece> pieces;
  for (const AdamWSlot& slot : slots)
    for (std::int64_t begin = 0, n = slot.value.numel(); begin < n; begin += kPiece)
      pieces.push_back({&slot, begin, std::min(kPiece, n - begin)});
  const auto n = static_cast<std::int64_t>(pieces.size());
  parallel_for(n, n * kPiece, [&](std::int64_t i) {
    const Piece& at = pieces[static_cast<std::size_t>(i)];
    const AdamWSlot& slot = *at.slot;
    auto update = [&]<class A>(auto&& kernel) {
      kernel(slot.value.data<A>() + at.begin, slot.grad.data<A>() + at.begin,
             slot.m.data<A>() + at.begin, slot.v.data<A>() + at.begin,
             factors<A>(step, slot, norm));
    };
    const bool flat = slot.compute.defined() && slot.compute.contiguous();
    bf16* compute = flat ? slot.compute.data<bf16>() + at.begin : nullptr;
    if (slot.value.dtype() == DType::F32 && fast())
      return update.template operator()<float>(
          [&](float* p, const float* g, float* m, float* v, auto f) {
            adamw_piece(p, g, m, v, compute, at.length, f);
          });
    auto plain = [&]<class A>(A* p, const A* g, A* m, A* v, const AdamWFactors<A>& f) {
      adamw_plain(p, g, m, v, at.length, f);
      for (std::int64_t j = 0; compute && j < at.length; ++j) compute[j] = rounded<bf16>(p[j]);
    };
    if (slot.value.dtype() == DType::F32)
      update.template operator()<float>(plain);
    else
      update.template operator()<double>(plain);
  });
  for (const AdamWSlot& slot : slots)
    if (slot.compute.defined() && !slot.compute.contiguous()) copy(slot.compute, slot.value);
}

}  // namespace lk
