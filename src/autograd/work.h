// The least work that an op must do: the yardstick of profiles and kernel benches. Each op's cost
// is defined next to its derivative in ops/<family>.cpp; an op without one does not link.
//
// Bytes count each input read once and each output written once (an output that is added to is read
// too). FLOPs are those of the maths: attention counts its causal half, its backward 5 products.
#pragma once

#include "tensor/backend.h"
#include "tensor/backend_ops.h"

namespace lk {

enum class OpFamily : std::uint8_t {
  BaseLinear,  // frozen projections of the blocks, forward and dX
  Head,        // the frozen head, forward and dX
  Lora,        // every product with A, B or their gradients
  AttentionForward,
  AttentionBackward,
  Norm,
  Rope,
  Gated,  // swiglu, geglu and gelu
  Loss,
  Embedding,  // includes choosing the supervised rows
  Optimizer,
  Transfer,  // copies between host and device
  Other,     // residual additions, dropout, biases, copies
};
inline constexpr int kFamilyCount = 13;

struct Work {
  OpFamily family = OpFamily::Other;
  double flops = 0, bytes = 0;
};

// work::rope(the arguments of Backend::rope) is the least work of that call. A product with a
// frozen matrix is BaseLinear whichever matrix it is: only the caller knows which one is the head.
namespace work {

#define LK_DECLARE_WORK(op, parameters, arguments) Work op parameters;
LK_BACKEND_OPS(LK_DECLARE_WORK)
#undef LK_DECLARE_WORK
Work weight_gradient(const Tensor& dw, GradMode mode, double alpha, const Tensor& a,
                     const Tensor& b);
Work vector_gradient(const Tensor& dl, GradMode mode, const Tensor& a, const Tensor& b,
                     const Tensor& mean, const Tensor& rstd);
Work table_gradient(const Tensor& dtable, GradMode mode, const Tensor& dy, const Tensor& ids);

// Bytes of a tensor, 0 if it is undefined. For the definitions of costs.
inline double size(const Tensor& t) { return t.defined() ? static_cast<double>(t.bytes()) : 0; }
template <class... Tensors>
double sizes(const Tensors&... t) {
  return (size(t) + ...);
}
inline double numel(const Tensor& t) { return static_cast<double>(t.numel()); }
// Bytes of an output: written, and read first if it is added to.
inline double written(const Tensor& t, GradMode mode) {
  return size(t) * (mode == GradMode::Add ? 2 : 1);
}

}  // namespace work
}  // namespace lk
